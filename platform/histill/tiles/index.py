"""Read a CSV index so strictly that no row is lost or merged silently."""

import csv
import io
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.control import read_bytes

NAMED_LINES = 5  # lines of the index that a sentence lists


@dataclass(frozen=True)
class Index:
    """The rows of a CSV file as text, so that `007` stays `007`, without spaces around values."""

    uri: str
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    lines: list[int]  # the line of each row in the file, counted from 1
    notes: tuple[str, ...]  # a sentence for what was left out

    def unused(self, used: Iterable[str | None]) -> tuple[str, ...]:
        """The columns that are not in `used`, in order."""
        names = set(used)
        return tuple(column for column in self.columns if column and column not in names)


def read_index(uri: str, storage: Storage, *, needed: Iterable[str]) -> Index:
    """Read the index at `uri`: UTF-8, comma-separated, with a header.

    Raises InputError, with the line, when the file is missing, is not such a table, names a column twice, lacks one of
    the `needed` columns or a value in one of them, or has no rows; when a row is shorter or longer than the header; and
    when a quoted value continues on the next line, which is how one stray quote swallows the rows below it.
    """
    table = _records(uri, _text_of(uri, storage))
    _, header = next(table, (1, []))
    columns = tuple(plain(name) for name in header)
    _check_header(uri, columns, needed)
    rows, lines, empty = [], [], []
    for line, values in table:
        if not any(value.strip() for value in values):
            empty += [line] if values else []  # a blank line is no row
            continue
        if len(values) != len(columns):
            raise InputError(
                f"line {line} of the index {uri} has {len(values)} values for {len(columns)} columns; quote values "
                "that hold a comma.",
                code="index-malformed",
            )
        row = {name: value.strip() for name, value in zip(columns, values, strict=True)}
        for column in needed:
            if not row[column]:
                raise InputError(
                    f"line {line} of the index {uri} has no value for {column!r}; fill it in.", code="index-wrong-value"
                )
        rows.append(row)
        lines.append(line)
    if not rows:
        raise InputError(
            f"the index {uri} has a header and no rows; name at least one file in it.", code="index-malformed"
        )
    notes = (f"{len(empty)} rows of the index without any value are left out ({lines_named(empty)}).",) if empty else ()
    return Index(uri, columns, rows, lines, notes)


def plain(name: str) -> str:
    """`name` without surrounding spaces, in Unicode NFC, so that files from macOS and Linux spell it alike."""
    return unicodedata.normalize("NFC", name.strip())


def lines_named(lines: Sequence[int]) -> str:
    """The first few lines in words: `line 3`, `lines 3, 5`, `lines 3, 5, 6, 7, 9 and 12 more`."""
    more = f" and {len(lines) - NAMED_LINES} more" if len(lines) > NAMED_LINES else ""
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines[:NAMED_LINES]))}{more}"


def read_index_bytes(uri: str, storage: Storage) -> bytes:
    """The bytes of an index file. Raises InputError when there is none."""
    try:
        return read_bytes(uri, storage)
    except FileNotFoundError:
        raise InputError(
            f"the index {uri} does not exist; give the path of a CSV file.", code="source-missing"
        ) from None


def _text_of(uri: str, storage: Storage) -> str:
    data = read_index_bytes(uri, storage)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"the index {uri} is not UTF-8 text (line {line}); save it as a CSV file in UTF-8.", code="index-malformed"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(
            f"line {line} of the index {uri} holds a NUL character; save it as a CSV file in UTF-8.",
            code="index-malformed",
        )
    return text.lstrip("\ufeff")


def _records(uri: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """The values of each record and the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"line {line} of the index {uri} has a quote that is not closed, or one inside a quoted value "
                f"({error}); close it, or write it twice.",
                code="index-malformed",
            ) from None
        if values is None:
            return
        if any("\n" in value or "\r" in value for value in values):
            raise InputError(
                f"line {line} of the index {uri} has a quoted value that runs on to line {reader.line_num}; close the "
                "quote, or take the line breaks out of the value.",
                code="index-malformed",
            )
        yield line, values


def _check_header(uri: str, columns: tuple[str, ...], needed: Iterable[str]) -> None:
    for position, name in enumerate(columns):
        if name and name in columns[:position]:
            raise InputError(
                f"the index {uri} names the column {name!r} twice (columns {columns.index(name) + 1} and "
                f"{position + 1}); rename or remove one of them.",
                code="index-duplicate",
            )
    for column in needed:
        if column in columns:
            continue
        if len(columns) == 1 and (found := next((mark for mark in ";\t|" if mark in columns[0]), None)):
            raise InputError(
                f"the columns of the index {uri} are separated by {found!r}, and a comma was expected; save it as a "
                "CSV file with commas.",
                code="index-malformed",
            )
        alike = next((name for name in columns if name.casefold() == column.casefold()), None)
        hint = f" (it is written {alike!r})" if alike else ""
        raise InputError(
            f"the index {uri} has no column {column!r}{hint}; it has {', '.join(filter(None, columns)) or 'none'}: "
            "add it, or name another in the configuration.",
            code="index-column-missing",
        )
