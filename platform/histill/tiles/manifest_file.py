"""Write a manifest's rows and read them, in pieces, so that memory does not grow with the tile set."""

import hashlib
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.control import measure_files, read_bytes, write_bytes
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.storage.node_copy import open_node_copy
from histill.storage.records import write_record
from histill.storage.retry import with_retries
from histill.storage.row_group_index import write_index
from histill.storage.scratch import scratch_folder
from histill.storage.uris import is_remote, join
from histill.tiles.coded_column import count_values
from histill.tiles.manifest import HEADER_NAME, Header, Manifest, read_header
from histill.tiles.schema import MANIFEST, kept_columns, manifest_schema
from histill.tiles.slide_records import SlideRecord, write_slides
from histill.tiles.tile_rows import TileRows, copy_rows, hold_rows, map_rows

TABLE_NAME = "manifest.parquet"
MAPPED_TILES = 1 << 17
"""From so many tiles on, the rows are mapped from a copy that the processes of a node share."""
_GROUP_ROWS = 1 << 18  # rows of the file that are written at a time
_BLOCK = 1 << 24  # bytes that are read at a time
_COPY = "manifest-2"  # name and version of a node's copy


def write_rows(
    uri: str,
    tables: Iterable[pa.Table],
    *,
    tile_px: int,
    mpp: float,
    ingest: str,
    storage: Storage,
    skipped: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    describe: Callable[[TileRows], Sequence[str]] = lambda rows: (),
    slides: Sequence[SlideRecord] = (),
    cut: bool = True,
    kept: Sequence[str] = (),
    icc: Literal["srgb"] | None = None,
) -> Manifest:
    """Write the rows and the record of the slides; the set is finished once its header is written, too.

    `describe` adds notes on the rows; `kept` are the columns of the index that the tables have at their end.
    """
    with scratch_folder() as folder:
        path = Path(folder, TABLE_NAME)
        digest = _write_table(path, tables, manifest_schema(kept))
        file_digest, rows = _digest_file(path), _hold_or_map(path, Path(folder))
        header = _describe_rows(
            rows, digest=digest, table=file_digest, tile_px=tile_px, mpp=mpp, ingest=ingest, skipped=skipped,
            notes=(*notes, *describe(rows)), slides=write_slides(uri, slides, storage) if slides else None,
            cut=cut, columns=tuple(kept), icc=icc,
        )  # fmt: skip
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            write_bytes(join(uri, TABLE_NAME), content, storage)
        if header.tiles >= MAPPED_TILES:
            rows = map_manifest(uri, header, storage) or rows
    return Manifest(uri, header, rows)


def write_manifest(uri: str, table: pa.Table, *, storage: Storage, **values: Any) -> Manifest:
    """Write the rows and then the header, for shards that exist already; `values` are passed to `write_rows`."""
    manifest = write_rows(uri, [table], storage=storage, kept=kept_columns(table.schema), **values)
    if is_remote(uri):
        write_index(uri, measure_files(uri, manifest.shards(), storage), manifest.header.digest, storage)
    write_record(manifest.header, join(uri, HEADER_NAME), storage)
    return manifest


def read_manifest(uri: str, storage: Storage, *, cut: bool = True) -> Manifest:
    """Read the header and open the rows, verified against their digest: those of a large set are mapped, not read.

    Raises InputError when one is missing, they do not belong together, or the set is to be `cut` and is not.
    """
    header = read_header(uri, storage, cut=cut)
    rows = map_manifest(uri, header, storage) if header.tiles >= MAPPED_TILES else None
    return Manifest(uri, header, rows or _read_rows(uri, header, storage))


def map_manifest(uri: str, header: Header, storage: Storage) -> TileRows | None:
    """The rows, mapped from this node's copy, which is made if there is none; None where it cannot be kept.

    Raises InputError as `read_manifest` does.
    """
    folder = open_node_copy(f"{_COPY}-{header.table[:40]}", storage, partial(_copy, uri, header, storage))
    return None if folder is None else map_rows(folder)


def digest_tables(tables: Iterable[pa.Table], schema: pa.Schema = MANIFEST) -> str:
    """SHA-256 of the rows as CSV, which does not depend on the chunks and buffers of the tables."""
    text = _Sha256()
    with pyarrow.csv.CSVWriter(pa.PythonFile(text, mode="w"), schema) as writer:
        for table in tables:
            writer.write_table(table)
    return text.sha256.hexdigest()


class _Sha256:
    """A file that keeps nothing but the SHA-256 of what is written."""

    closed = False

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _write_table(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> str:
    """Write the rows to a file and return their digest."""

    def written(writer: pq.ParquetWriter) -> Iterator[pa.Table]:
        for group in _regroup(tables, schema):
            writer.write_table(group)
            yield group

    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        return digest_tables(written(writer), schema)


def _regroup(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of `tables` in tables of one chunk and `_GROUP_ROWS` rows, the last with fewer."""
    waiting = schema.empty_table()
    for table in tables:
        waiting = pa.concat_tables([waiting, table.select(schema.names).cast(schema)])
        while waiting.num_rows >= _GROUP_ROWS:
            yield waiting.slice(0, _GROUP_ROWS).combine_chunks()
            waiting = waiting.slice(_GROUP_ROWS)
    if waiting.num_rows:
        yield waiting.combine_chunks()


def _describe_rows(rows: TileRows, **values: Any) -> Header:
    counts: dict[str, dict[Any, int]] = {}
    for name in ("split", "label", "has_mask"):
        counts[name] = {value: count for (value,), count in count_values([rows.coded[name]])}
    return Header(
        tiles=len(rows),
        labels=tuple(sorted(label for label in counts["label"] if label is not None)),
        splits=dict(sorted(counts["split"].items())),
        masks=counts["has_mask"].get(True, 0),
        **values,
    )


def _hold_or_map(path: Path, folder: Path) -> TileRows:
    file = pq.ParquetFile(path)
    if file.metadata.num_rows < MAPPED_TILES:
        return hold_rows(file.read())
    copy_rows(path, folder)
    return map_rows(folder)


def _read_rows(uri: str, header: Header, storage: Storage) -> TileRows:
    try:
        data = read_bytes(join(uri, TABLE_NAME), storage)
    except FileNotFoundError:
        raise _missing(uri) from None
    if hashlib.sha256(data).hexdigest() != header.table:
        raise _wrong(uri)
    return hold_rows(pq.read_table(pa.BufferReader(data)))


def _copy(uri: str, header: Header, storage: Storage, folder: Path) -> None:
    """Fill a node's copy: fetch the file, check it, and write its rows in the form that is mapped."""
    path, source = folder / TABLE_NAME, join(uri, TABLE_NAME)
    try:
        with storage_errors(source, storage):
            digest = with_retries(partial(_fetch, source, storage, path), storage, uri=source)
    except FileNotFoundError:
        raise _missing(uri) from None
    if digest != header.table:
        raise _wrong(uri)
    copy_rows(path, folder)
    path.unlink()


def _fetch(uri: str, storage: Storage, path: Path) -> str:
    """Copy a file to the local `path` and return its SHA-256."""
    filesystem, within = arrow_filesystem(uri, storage)
    sha256 = hashlib.sha256()
    with filesystem.open_input_file(within) as file, path.open("wb") as copy:
        while block := file.read(_BLOCK):
            sha256.update(block)
            copy.write(block)
    return sha256.hexdigest()


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _missing(uri: str) -> InputError:
    return InputError(f"{join(uri, TABLE_NAME)} is missing; ingest the tiles again.", code="tiles-damaged")


def _wrong(uri: str) -> InputError:
    return InputError(
        f"{join(uri, TABLE_NAME)} does not match its header's digest: it was cut short or overwritten; ingest the "
        "tiles again.",
        code="tiles-damaged",
    )
