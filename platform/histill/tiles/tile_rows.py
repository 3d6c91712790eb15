"""The rows of a manifest in a narrow form, held in memory or mapped from a file that all processes of a node share.

A column with few values is coded (see `coded_column`); where a tile lies in its row group follows from the row at which
the group starts; a content hash is 16 bytes instead of 32 digits. So a row takes about 20 bytes besides its name, and
reading some rows touches only their pages.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from histill.tiles.coded_column import CodedColumn, code_column, join_ends
from histill.tiles.contents import Expected, bytes_to_hex, hex_to_bytes
from histill.tiles.row_runs import RowRuns
from histill.tiles.schema import MANIFEST, kept_columns, manifest_schema

CODED = ("slide", "case", "mpp", "size_px", "label", "has_mask", "split", "shard", "row_group")
_PLAIN = ("tile_id", "x", "y", "content")
_ROW = "row"
_AT_ONCE = 4  # columns that are copied concurrently
_PIECE = 1 << 18  # rows that are written, and hashed, at a time

ReadColumn = Callable[[str], Iterable[pa.RecordBatch]]


@dataclass(frozen=True, eq=False)
class TileRows:
    """The rows of a manifest by column; row i is tile i."""

    coded: Mapping[str, CodedColumn]
    plain: pa.Table  # the other columns; `content` as bytes, `row` only where it does not follow from the row group

    def __len__(self) -> int:
        return int(self.plain.num_rows)

    @cached_property
    def group_starts(self) -> np.ndarray:
        """The row at which each row group starts, followed by the number of rows; int64 [row groups + 1]."""
        return _find_groups(self.coded)

    def read(self, names: Sequence[str], rows: np.ndarray) -> pa.Table:
        """Some columns of some rows (int64), in the types of the manifest."""
        rows = np.asarray(rows, np.int64)
        schema = manifest_schema(self.kept)
        fields = [schema.field(name) for name in names]
        columns = [self._read(field.name, rows).cast(field.type) for field in fields]
        return pa.table(columns, schema=pa.schema(fields))

    @property
    def kept(self) -> tuple[str, ...]:
        """The columns that are kept of the index."""
        return tuple(name for name in self.coded if name not in CODED)

    def _read(self, name: str, rows: np.ndarray) -> pa.Array:
        if name in self.coded:
            return self.coded[name].take(rows)
        if name == _ROW and name not in self.plain.column_names:
            return pa.array(self.places(rows))
        found = _take(self.plain[name], rows)
        return bytes_to_hex(found) if name == "content" else found

    def find(self, name: str, values: Collection[Any]) -> RowRuns:
        """The rows with one of `values` in a coded column."""
        ends, codes = self.coded[name].runs()
        chosen = np.array([value in values for value in self.coded[name].values.to_pylist()], bool)[codes]
        return RowRuns.between(np.concatenate([[0], ends[:-1]])[chosen], ends[chosen])

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where each of `rows` (int64) lies within its row group, int64."""
        if _ROW in self.plain.column_names:
            found: np.ndarray = _take(self.plain[_ROW], rows).to_numpy().astype(np.int64)
            return found
        return _places(self.group_starts, rows)

    def expected(self, first: int, count: int) -> Expected:
        """What the tiles of `count` rows from `first` on must be; nothing of them is read yet."""
        return Expected.of(self.plain, first, count)


def hold_rows(table: pa.Table) -> TileRows:
    """The rows of a manifest's `table`, in memory."""

    def read(name: str) -> Iterable[pa.RecordBatch]:
        return table.select([name]).to_batches(max_chunksize=_PIECE)

    coded = {name: CodedColumn.of(code_column(read(name))) for name in (*CODED, *kept_columns(table.schema))}
    names = list(_PLAIN) if _follows(read, coded) else [*_PLAIN, _ROW]
    return TileRows(coded, pa.table({name: pa.Table.from_batches(_pack(name, read))[name] for name in names}))


def copy_rows(path: Path, folder: Path) -> None:
    """Write the rows of a manifest's Parquet file into `folder`, from where `map_rows` maps them.

    A few columns at a time, in pieces, so that what is held does not grow with the rows: but for a column that is coded
    without runs.
    """

    def read(name: str) -> Iterable[pa.RecordBatch]:
        # with `pre_buffer`, the default, the bytes of a whole column would be held until its end
        return pq.ParquetFile(path, pre_buffer=False).iter_batches(batch_size=_PIECE, columns=[name])

    kept = kept_columns(pq.read_schema(path))

    def copy(name: str) -> None:
        batches = iter(code_column(read(name)).to_batches() if name in (*CODED, *kept) else _pack(name, read))
        first = next(batches)
        _write(folder / f"{name}.arrow", first.schema, chain([first], batches))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(copy, (*reversed(_PLAIN), *CODED, *kept)):  # the longest first
            pass
    if not _follows(read, map_rows(folder).coded):
        copy(_ROW)


def map_rows(folder: Path) -> TileRows:
    """The rows that `copy_rows` wrote, mapped. Raises OSError or ArrowException when they are not whole."""
    kept = sorted({path.stem for path in folder.glob("*.arrow")} - set(MANIFEST.names))
    coded = {name: CodedColumn.of(_map(folder / f"{name}.arrow")) for name in (*CODED, *kept)}
    names = [*_PLAIN, *([_ROW] if (folder / f"{_ROW}.arrow").exists() else [])]
    return TileRows(coded, pa.table({name: _map(folder / f"{name}.arrow")[name] for name in names}))


def _pack(name: str, read: ReadColumn) -> Iterator[pa.RecordBatch]:
    """A column that is not coded; hashes as bytes."""
    if name != "content":
        yield from read(name)
        return
    kind: pa.DataType | None = None  # that of the first batch is that of all
    masks = any(True in batch.column(0).unique().to_pylist() for batch in read("has_mask"))
    for batch in read(name):
        packed = hex_to_bytes(batch.column(0), kind, masks=masks)
        kind = packed.type
        yield pa.RecordBatch.from_arrays([packed], [name])


def _follows(read: ReadColumn, coded: Mapping[str, CodedColumn]) -> bool:
    """Whether each tile lies in its row group as far behind the first as in the manifest."""
    starts, at = _find_groups(coded), 0
    for batch in read(_ROW):
        rows = np.arange(at, at + batch.num_rows)
        if not np.array_equal(
            batch.column(0).to_numpy(), rows - starts[np.searchsorted(starts, rows, side="right") - 1]
        ):
            return False
        at += batch.num_rows
    return True


def _find_groups(coded: Mapping[str, CodedColumn]) -> np.ndarray:
    return np.concatenate([[0], join_ends(coded["shard"].runs()[0], coded["row_group"].runs()[0])])


def _places(starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows - starts[np.searchsorted(starts, rows, side="right") - 1])


def _take(column: pa.ChunkedArray, rows: np.ndarray) -> pa.Array:
    """The values of `rows`, chunk by chunk: pyarrow's own `take` may first join the chunks, and read all of them."""
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    chunk = np.searchsorted(ends, rows, side="right")
    order = np.argsort(chunk, kind="stable")
    numbers, first = np.unique(chunk[order], return_index=True)
    parts = [
        column.chunk(number).take(pa.array(rows[part] - (ends[number - 1] if number else 0)))
        for number, part in zip(numbers, np.split(order, first[1:]), strict=bool(len(numbers)))
    ]
    if not parts:
        return pa.array([], column.type)
    found = pa.concat_arrays(parts)
    return found if np.array_equal(order, np.arange(len(order))) else found.take(pa.array(np.argsort(order)))


def _write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _map(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()
