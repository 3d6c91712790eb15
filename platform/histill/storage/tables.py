"""Parquet files that are written atomically, name what they belong to, and are verified when read."""

import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from histill.config.common import Storage
from histill.storage.control import write_bytes
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.storage.scheme import scheme_of

_BELONGS_TO = b"histill.belongs_to"


def write_table(
    uri: str,
    groups: Iterable[pa.Table],
    schema: pa.Schema,
    storage: Storage,
    *,
    compression: str = "none",
    belongs_to: str | None = None,
) -> int:
    """Write a file with one row group for each of `groups`, atomically; return its size in bytes.

    It is assembled in memory, since a stream completes its upload even when an exception closes it. `belongs_to` names
    what the file is a part of, so that it is not mistaken for a part of something else.

    Raises InputError when the storage refuses.
    """
    if belongs_to is not None:
        schema = schema.with_metadata({**(schema.metadata or {}), _BELONGS_TO: belongs_to})
    options = {"compression": compression, "use_dictionary": False, "write_statistics": False}
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, write_page_checksum=True, **options) as writer:
        for group in groups:
            writer.write_table(group.cast(schema))
    data = sink.getvalue()
    write_bytes(uri, data, storage)
    return len(data)


def read_columns(uri: str, columns: list[str], storage: Storage, *, belongs_to: str | None = None) -> pa.Table | None:
    """Read some columns of a file; None when it is missing, truncated, damaged, or a part of something else."""
    filesystem, path = arrow_filesystem(uri, storage)

    def read() -> pa.Table | None:
        try:
            with filesystem.open_input_file(path) as file:
                return pq.read_table(file, columns=columns, page_checksum_verification=True)
        except (pa.ArrowInvalid, OSError) as error:
            if is_damage(error, uri):
                return None
            raise

    try:
        with storage_errors(uri, storage):
            table = read()
    except FileNotFoundError:
        return None
    if belongs_to is not None and table is not None and not is_part_of(table.schema.metadata, belongs_to):
        return None
    return table


def is_part_of(metadata: dict[bytes, bytes] | None, belongs_to: str) -> bool:
    """Whether a file with this metadata is a part of `belongs_to`."""
    return (metadata or {}).get(_BELONGS_TO) == belongs_to.encode()


def is_damage(error: Exception, uri: str) -> bool:
    """Whether the Parquet reader rejected the bytes of `uri`, rather than the storage the request."""
    if isinstance(error, pa.ArrowInvalid):
        return True
    of_client = any(text in str(error) for text in scheme_of(uri).errors.client)
    return type(error) is OSError and error.errno is None and not of_client
