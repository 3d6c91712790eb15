"""The work of one task of the graph: read the row groups of a chunk and, where it is smaller, decode them to views."""

from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histill.stream.buffers import Buffers
from histill.stream.decode import CorruptTile, compress_mask
from histill.stream.decode_spec import DecodeSpec, PassSpec, place_tiles, show_mask, show_tile
from histill.stream.encoded import list_encoded_rows, view_column
from histill.stream.ray_data.chunks import Chunk, pack_rows
from histill.stream.read import ShardReader
from histill.stream.views import draw_numbers

_READ_THREADS = 4


@cache
def process_reader() -> ShardReader:
    """The reader of this process, whose connections and footers all of its tasks share."""
    return ShardReader(_READ_THREADS)


@cache
def process_buffers() -> Buffers:
    """Memory for views, which returns here once Ray has copied them to its object store."""
    return Buffers()


@dataclass(frozen=True)
class ReadTiles:
    """Reads the row groups of a chunk; tiles stay encoded. Ray Data shows the name."""

    specs: Mapping[str, PassSpec]  # of any pass of each stream

    def __call__(self, block: pa.Table) -> pa.Table:
        chunk = Chunk.from_block(block)
        return pack_rows(_join(_read(self.specs[chunk.stream].of_epoch(chunk.epoch), chunk)), last=chunk.last)


@dataclass(frozen=True)
class DecodeTiles:
    """Reads the row groups of a chunk and decodes its tiles to what the network sees, if they are of such a stream."""

    specs: Mapping[str, PassSpec]  # of any pass of each stream
    decoded: frozenset[str]  # names of the streams whose tiles are decoded

    def __call__(self, block: pa.Table) -> pa.Table:
        chunk = Chunk.from_block(block)
        spec = self.specs[chunk.stream].of_epoch(chunk.epoch)
        tables = _read(spec, chunk)
        if tables and chunk.stream in self.decoded:
            return pack_rows(decode_views(tables, chunk.tiles, chunk.copies, spec.how), last=chunk.last)
        return pack_rows(_join(tables), last=chunk.last)


def decode_views(tables: Sequence[pa.Table], tiles: np.ndarray, copies: np.ndarray, how: DecodeSpec) -> pa.Table:
    """Replace the encoded tiles of `tables` by their views, or by the reason why they cannot be decoded.

    `tiles` and `copies` (int64) are the rows of the manifest, and the repeat numbers, of their rows. A mask becomes
    `window_mask`, what the window shows of it, which costs the trainer a tenth of its PNG, or stays if it is damaged.
    """
    draws = draw_numbers(how.seed, how.epoch, tiles, copies)
    places, _ = place_tiles(tiles, draws, how)
    arrays = [process_buffers().lend((len(tiles), side, side, 3)) for side in how.shown_px]
    faults: list[str | None] = [None] * len(tiles)
    masks: list[bytes | None] = [None] * len(tiles)
    rows = (row for table in tables for _, row in list_encoded_rows(table))  # joined, tables would be copied
    for number, (row, place, drawn) in enumerate(zip(rows, places, draws, strict=True)):
        try:
            show_tile([array[number] for array in arrays], row, place, drawn[3:], how)
        except CorruptTile as fault:
            faults[number] = str(fault)
        if how.masks:
            with suppress(CorruptTile):  # the trainer meets it again, if it needs the mask
                masks[number] = compress_mask(show_mask(row, place, how))
    rest = _join([_drop_columns(table, {"image", "pixels"}) for table in tables])
    if how.masks:
        done = pa.array([mask is not None for mask in masks])
        raw = pc.if_else(done, pa.scalar(None, pa.binary()), rest["mask"])
        rest = _drop_columns(rest, {"mask"}).append_column("mask", raw)
        rest = rest.append_column("window_mask", pa.array(masks, pa.binary()))
    for number, array in enumerate(arrays):
        rest = rest.append_column(view_column(number), _fixed_size(array))
    return rest.append_column("fault", pa.array(faults, pa.string()))


def _drop_columns(table: pa.Table, names: Set[str]) -> pa.Table:
    return table.select([name for name in table.column_names if name not in names])


def _read(spec: PassSpec, chunk: Chunk) -> list[pa.Table]:
    return list(process_reader()(spec.source, chunk.requests))


def _join(tables: Sequence[pa.Table]) -> pa.Table:
    if not tables:
        return pa.table({"entry": pa.array([], pa.int64())})
    # Where the cache keeps tiles decoded, row groups with a spoilt tile are still encoded.
    return pa.concat_tables(tables, promote_options="default")


def _fixed_size(array: np.ndarray) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(array[0].nbytes), len(array), [None, pa.py_buffer(array)])
