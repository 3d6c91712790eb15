"""The work of one task of the graph: read the row groups of a chunk and, where it is smaller, decode them to views."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa

from histill.stream.buffers import Buffers
from histill.stream.decode import CorruptTile
from histill.stream.decode_spec import DecodeSpec, PassSpec, place_tiles, show_tile
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
        return pack_rows(_read(self.specs[chunk.stream].of_epoch(chunk.epoch), chunk), last=chunk.last)


@dataclass(frozen=True)
class DecodeTiles:
    """Reads the row groups of a chunk and decodes its tiles to what the network sees, if they are of such a stream."""

    specs: Mapping[str, PassSpec]  # of any pass of each stream
    decoded: frozenset[str]  # names of the streams whose tiles are decoded

    def __call__(self, block: pa.Table) -> pa.Table:
        chunk = Chunk.from_block(block)
        spec = self.specs[chunk.stream].of_epoch(chunk.epoch)
        table = _read(spec, chunk)
        if len(table) and chunk.stream in self.decoded:
            table = decode_views(table, chunk.tiles, chunk.copies, spec.how)
        return pack_rows(table, last=chunk.last)


def decode_views(table: pa.Table, tiles: np.ndarray, copies: np.ndarray, how: DecodeSpec) -> pa.Table:
    """Replace the encoded tiles of `table` by their views, or by the reason why they cannot be decoded.

    `tiles` and `copies` (int64) are the rows of the manifest, and the repeat numbers, of its rows.
    """
    draws = draw_numbers(how.seed, how.epoch, tiles, copies)
    places, _ = place_tiles(tiles, draws, how)
    arrays = [process_buffers().lend((len(tiles), side, side, 3)) for side in how.shown_px]
    faults: list[str | None] = [None] * len(tiles)
    rows = (row for _, row in list_encoded_rows(table))
    for number, (row, place, drawn) in enumerate(zip(rows, places, draws, strict=True)):
        try:
            show_tile([array[number] for array in arrays], row, place, drawn[3:], how)
        except CorruptTile as fault:
            faults[number] = str(fault)
    kept = [name for name in table.column_names if name not in ("image", "pixels")]
    views = {view_column(number): _fixed_size(array) for number, array in enumerate(arrays)}
    return pa.table({name: table[name] for name in kept} | views | {"fault": pa.array(faults, pa.string())})


def _read(spec: PassSpec, chunk: Chunk) -> pa.Table:
    tables = list(process_reader()(spec.source, chunk.requests))
    if not tables:
        return pa.table({"entry": pa.array([], pa.int64())})
    # Where the cache keeps tiles decoded, row groups with a spoilt tile are still encoded.
    return pa.concat_tables(tables, promote_options="default")


def _fixed_size(array: np.ndarray) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(array[0].nbytes), len(array), [None, pa.py_buffer(array)])
