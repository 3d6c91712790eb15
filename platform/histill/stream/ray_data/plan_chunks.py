"""Plan what the tasks of the graph read: the requests of one pass after another, in chunks."""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, count
from typing import Any

import numpy as np
import pyarrow as pa

from histill.config.common import Storage
from histill.stream.index import SampleIndex
from histill.stream.passes import Pass, Planner
from histill.stream.ray_data.chunks import Chunk
from histill.stream.read import ReadRequest
from histill.tiles.manifest_file import read_manifest


def plan_chunks(
    open_planner: Callable[[], Planner], first: Pass, passes: int | None, chunk_tiles: int
) -> Iterator[pa.Table]:
    """Yield a block for each chunk of at least `chunk_tiles` tiles, except the last of a pass.

    The passes are `first` and the following ones of its series, `passes` of them or, if None, without end.
    """
    planner = open_planner()
    numbers = count(first.epoch) if passes is None else range(first.epoch, first.epoch + passes)
    for epoch in numbers:
        of = first if epoch == first.epoch else Pass(first.series, epoch)
        yield from (chunk.to_block() for chunk in chunks_of(planner, of, chunk_tiles))


def chunks_of(planner: Planner, of: Pass, chunk_tiles: int) -> Iterator[Chunk]:
    """Cut the requests of one pass, in their order, into chunks."""
    steps, places = planner.plan(of)
    reads = chain.from_iterable(places.reads(step.opened) for step in steps)
    waiting: list[ReadRequest] = []
    for read in reads:
        if sum(len(each.entries) for each in waiting) >= chunk_tiles:
            yield _chunk(waiting, of, places, last=False)
            waiting = []
        waiting.append(read)
    yield _chunk(waiting, of, places, last=True)


def _chunk(reads: list[ReadRequest], of: Pass, places: SampleIndex, *, last: bool) -> Chunk:
    entries = np.concatenate([np.zeros(0, np.int64), *(read.entries for read in reads)])
    return Chunk(of.epoch, last, reads, places.tiles_of(entries), places.copies_of(entries))


def make_planner(uri: str, storage: Storage, values: Mapping[str, Any]) -> Planner:
    """A planner of the tile set at `uri`, with these values of its other fields."""
    return Planner(manifest=read_manifest(uri, storage), **values)
