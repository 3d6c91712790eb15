"""Where the row groups of a folder of shards lie, so that each is read by one request, without its shard's footer.

It is written when the shards are finished, from their footers. It also names the version of each object, which every
reply repeats: a shard that has been replaced since is read by its own footer again.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from histill.config.common import Storage
from histill.storage.control import read_bytes
from histill.storage.node_copy import open_node_copy
from histill.storage.row_group_file import Chunk, Column, describe_columns, parse_footer
from histill.storage.scheme import ReadRange, scheme_of
from histill.storage.tables import is_part_of, write_table
from histill.storage.uris import join, path_within

INDEX_NAME = "row_groups.index"  # a Parquet file, but none of the shards
_COLUMNS = b"histill.columns"  # Parquet metadata: the shards' columns
_TAIL = 1 << 16  # bytes in which a footer usually fits
_AT_ONCE = 16
GAP = 1 << 16  # bytes that are rather read in vain than left out by another request
_MAPPED = 1 << 16  # row groups from which on the index is mapped from a node's copy
_LENGTH = "length_"


@dataclass(frozen=True)
class Part:
    """The bytes `start` to `start + length` of a shard, and the columns that they hold."""

    start: int
    length: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Place:
    """Some columns of a row group: its number of rows, where they lie, and the version of the shard."""

    rows: int
    version: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class RowGroupIndex:
    """The row groups of all shards, ordered by the hashes of their names."""

    table: pa.Table

    @cached_property
    def _columns(self) -> list[Column]:
        return [Column(**each) for each in json.loads(self.table.schema.metadata[_COLUMNS])]

    @cached_property
    def _values(self) -> dict[str, np.ndarray]:
        return {name: self.table[name].chunk(0).to_numpy() for name in self.table.column_names}

    def find(self, shard: str, row_group: int, names: Sequence[str]) -> Place | None:
        """Where these columns of a row group lie, in the order of the shard; None if the shard is another."""
        values = self._values
        row = int(np.searchsorted(values["shard"], np.uint64(_key(shard)))) + row_group
        if row >= len(values["shard"]) or values["shard"][row] != _key(shard) or values["row_group"][row] != row_group:
            return None
        at, runs = int(values["start"][row]), list[list[Chunk]]()
        for column in self._columns:
            length = int(values[_LENGTH + column.name][row])
            if column.name in names:
                if not runs or at - _end(runs[-1]) > GAP:
                    runs.append([])
                runs[-1].append(Chunk(column, at, length))
            at += length
        if sum(map(len, runs)) != len(set(names)):
            return None
        return Place(int(values["rows"][row]), int(values["version"][row]), tuple(map(_part, runs)))


def _end(run: Sequence[Chunk]) -> int:
    return run[-1].start + run[-1].length


def _part(run: Sequence[Chunk]) -> Part:
    start = run[0].start
    moved = tuple(Chunk(chunk.column, chunk.start - start, chunk.length) for chunk in run)
    return Part(start, _end(run) - start, moved)


def write_index(uri: str, sizes: Mapping[str, int], belongs_to: str, storage: Storage) -> None:
    """Write the index of the finished shards below `uri`, given their sizes in bytes by name.

    Does nothing where one request more does not matter (local files), and for shards that are not plain.
    """
    open_ranges = scheme_of(uri).open_ranges
    read = open_ranges(uri, storage) if open_ranges is not None else None
    if read is None:
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(partial(_read_places, read, uri), sizes, sizes.values()))
    columns = {each for each, _ in found}
    if len(columns) != 1 or (described := columns.pop()) is None:
        return
    rows = sorted((row for _, rows in found for row in rows), key=lambda row: (row["shard"], row["row_group"]))
    fields = {"shard": pa.uint64(), "row_group": pa.int32(), "version": pa.uint64(), "rows": pa.int32()}
    fields |= {"start": pa.int64()} | {_LENGTH + column.name: pa.int32() for column in described}
    about = {_COLUMNS: json.dumps([asdict(column) for column in described])}
    schema = pa.schema(fields.items(), metadata=about)
    table = pa.Table.from_pylist(rows, schema=schema)
    write_table(join(uri, INDEX_NAME), [table], schema, storage, compression="zstd", belongs_to=belongs_to)


def read_index(uri: str, belongs_to: str, storage: Storage) -> RowGroupIndex | None:
    """The index of the shards below `uri`; None if there is none, or if it is of other shards."""
    try:
        data = read_bytes(join(uri, INDEX_NAME), storage)
        table = pq.read_table(pa.BufferReader(data))
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    if not is_part_of(table.schema.metadata, belongs_to) or _COLUMNS not in table.schema.metadata:
        return None
    table = table.combine_chunks()
    if table.num_rows >= _MAPPED:
        copy = open_node_copy(f"row-groups-{sha256(data).hexdigest()[:40]}", storage, partial(_copy, table))
        if copy is not None:
            with pa.memory_map(str(copy / "index.arrow")) as file:
                table = pa.ipc.open_file(file).read_all()
    return RowGroupIndex(table)


def _copy(table: pa.Table, folder: Path) -> None:
    with pa.OSFile(str(folder / "index.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _read_places(
    read: ReadRange, uri: str, shard: str, size: int
) -> tuple[tuple[Column, ...] | None, list[dict[str, int]]]:
    """The columns of a shard, and a row of the index for each of its row groups."""
    path = path_within(join(uri, shard))
    tail, version = read(path, max(0, size - _TAIL), min(size, _TAIL))
    needed = int.from_bytes(memoryview(tail)[-8:-4], "little") + 8
    if needed > len(tail):
        tail, version = read(path, size - needed, needed)
    footer = parse_footer(bytes(memoryview(tail)[-needed:]))
    columns, rows = describe_columns(footer), list[dict[str, int]]()
    if columns is None:
        return None, rows
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        row = {"shard": _key(shard), "row_group": number, "version": version, "rows": group.num_rows}
        row["start"] = group.column(0).data_page_offset
        lengths = {_LENGTH + column.name: group.column(at).total_compressed_size for at, column in enumerate(columns)}
        rows.append(row | lengths)
    return columns, rows


def _key(shard: str) -> int:
    return xxhash.xxh3_64_intdigest(shard.encode())
