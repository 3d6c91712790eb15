"""What both kinds of source share: an index in CSV, files from anywhere, and the error for a bad one."""

import csv
import io
from collections.abc import Iterable

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.control import read_bytes
from histill.storage.filesystems import arrow_filesystem, storage_errors


class Unreadable(InputError):
    """One slide or image cannot be used; the message names it. A job skips a stated number of them."""


def read_index(uri: str, storage: Storage, *, needed: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, as text: `007` stays `007`. Spaces around values are dropped.

    Raises InputError when the file is missing or not a table, or lacks one of the `needed` columns or all
    rows.
    """
    try:
        text = read_bytes(uri, storage).decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"the index {uri} does not exist; give the path of a CSV file.") from None
    except UnicodeDecodeError:
        raise InputError(f"the index {uri} is not UTF-8 text; save it as a CSV file in UTF-8.") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    for column in needed:
        if column not in header:
            raise InputError(f"the index {uri} has no column {column!r}; it has {', '.join(header) or 'none'}.")
    rows = []
    for values in reader:
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(header):
            raise InputError(
                f"line {reader.line_num} of the index {uri} has {len(values)} values for {len(header)} "
                "columns; quote values that hold a comma."
            )
        row = {name: value.strip() for name, value in zip(header, values, strict=True)}
        for column in needed:
            if not row[column]:
                raise InputError(f"line {reader.line_num} of the index {uri} has no value for {column!r}; fill it in.")
        rows.append(row)
    if not rows:
        raise InputError(f"the index {uri} has a header and no rows; name at least one file in it.")
    return rows


def read_file(uri: str, storage: Storage) -> bytes:
    """The bytes of a source. Raises Unreadable when it is not there, InputError when the storage refuses."""
    filesystem, path = arrow_filesystem(uri, storage)
    try:
        with storage_errors(uri, storage), filesystem.open_input_stream(path) as stream:
            data: bytes = stream.read()
    except FileNotFoundError:
        raise Unreadable(f"{uri} does not exist; correct the index.") from None
    return data
