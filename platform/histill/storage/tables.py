"""Parquet files that are there whole or not at all."""

import os
import uuid
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from histill.config.common import Storage
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.storage.uris import is_s3


def write_table(
    uri: str, groups: Iterable[pa.Table], schema: pa.Schema, storage: Storage, *, compression: str = "none"
) -> None:
    """Write a file with a row group for each of `groups`, whole or not at all.

    Raises InputError when the storage refuses.
    """
    filesystem, path = arrow_filesystem(uri, storage)
    # An object appears when its upload is completed.
    part = path if is_s3(uri) else f"{path}.{uuid.uuid4().hex[:8]}.part"
    if not is_s3(uri):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    options = {"compression": compression, "use_dictionary": False, "write_statistics": False}
    try:
        with (
            storage_errors(uri, storage),
            filesystem.open_output_stream(part) as sink,
            pq.ParquetWriter(sink, schema, **options) as writer,
        ):
            for group in groups:
                writer.write_table(group)
        if part != path:
            os.replace(part, path)
    finally:
        if part != path and os.path.exists(part):
            os.remove(part)


def read_columns(uri: str, columns: list[str], storage: Storage) -> pa.Table | None:
    """Some columns of a file, None when it is not there or not whole."""
    filesystem, path = arrow_filesystem(uri, storage)
    try:
        with storage_errors(uri, storage), filesystem.open_input_file(path) as file:
            return pq.read_table(file, columns=columns)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
