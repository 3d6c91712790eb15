"""Read the passes of a stream in other processes: plan, read and perhaps decode there; take the tables in order."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from math import ceil
from typing import Any

import pyarrow as pa

from histill.config.common import Storage
from histill.stream.decode_spec import DecodeSpec
from histill.stream.passes import Pass, Planner
from histill.stream.ray_data.chunks import unpack_rows
from histill.stream.ray_data.decode import DecodeTiles, ReadTiles
from histill.stream.ray_data.plan_chunks import make_planner, plan_chunks
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.tiles.manifest import Header

CHUNK_TILES = 256
"""Tiles that a task reads, or a few more: it takes whole row groups."""
_JPEG_RATIO = 9  # of pixels to bytes, where the size of the shards is not on record

Plan = Callable[[], Iterator[pa.Table]]
Execute = Callable[[Plan, ReadTiles | DecodeTiles, int], Generator[pa.Table]]
"""Applies the work to each block of the plan, in order, so many blocks ahead of the consumer: `RayDataGraph`."""


@dataclass
class PassReader:
    """Reads the passes of one stream, all from one execution as long as they follow each other.

    `epochs` is the number of the run's epochs, after which nothing is read ahead; None: passes have no end.
    """

    execute: Execute
    epochs: int | None = None
    _next: Pass | None = None  # that the execution goes on with
    _blocks: Generator[pa.Table] | None = None

    def __call__(self, stream: TileStream, of: Pass) -> Generator[pa.Table]:
        """Yield the tables of a pass in the order of its requests, with `image`, `pixels` or decoded views."""
        if self._blocks is None or of != self._next:
            self.close()
            self._blocks = self._start(stream, of)
        blocks, self._next = self._blocks, None
        for block in blocks:
            table, last = unpack_rows(block)
            if last:
                self._next = Pass(of.series, of.epoch + 1)
            if len(table):
                yield table
            if last:
                return
        raise RuntimeError(f"the execution ended within pass {of.epoch}")

    def close(self) -> None:
        """End the execution, if there is one."""
        if self._blocks is not None:
            with suppress(ValueError):  # the thread of a pass that was left early is still in it, and will end it
                self._blocks.close()
        self._blocks = self._next = None

    def _start(self, stream: TileStream, first: Pass) -> Generator[pa.Table]:
        passes = None if self.epochs is None else self.epochs - first.epoch
        planner = _without_tiles(stream.planner, stream.source.storage)
        spec = stream.spec(first)
        work = DecodeTiles if is_smaller_decoded(spec.how, spec.source, stream.manifest.header) else ReadTiles
        # What the first batch of a pass needs, so that it is there when the pass begins.
        ahead = ceil(min(stream.tiles, stream.planner.shuffled_tiles) / stream.workers / CHUNK_TILES)
        return self.execute(
            partial(plan_chunks, planner, first, passes, CHUNK_TILES),
            work(replace(spec, how=replace(spec.how, labels=None))),
            ahead,
        )


def is_smaller_decoded(how: DecodeSpec, source: TileSource, header: Header) -> bool:
    """Whether a tile's views are no more bytes than the tile as it is read."""
    if source.kept is not None:
        read = 3.0 * source.kept.side**2
    elif header.shard_bytes is not None:
        read = header.shard_bytes / max(1, header.tiles)
    else:
        read = 3 * header.tile_px**2 / _JPEG_RATIO
    return sum(3 * side * side for side in how.shown_px) <= read


def _without_tiles(planner: Planner, storage: Storage) -> "partial[Planner]":
    """A function that makes the planner again where it is called; it does not hold the manifest's rows."""
    values: Mapping[str, Any] = {
        each.name: getattr(planner, each.name) for each in fields(planner) if each.name != "manifest"
    }
    return partial(make_planner, planner.manifest.uri, storage, values)
