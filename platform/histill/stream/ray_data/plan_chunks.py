"""Plan what the tasks of the graph read: the requests of one pass after another, in chunks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from histill.config.common import Storage
from histill.stream.index import SampleIndex
from histill.stream.passes import Pass, Planner
from histill.stream.ray_data.chunks import Chunk
from histill.stream.read import ReadRequest
from histill.tiles.manifest_file import read_manifest


class Entry(NamedTuple):
    """A pass in the timetable of a run."""

    stream: str  # its name
    of: Pass


def plan_chunks(
    uri: str, storage: Storage, streams: Mapping[str, Mapping[str, Any]], entries: Sequence[Entry], chunk_tiles: int
) -> Iterator[pa.Table]:
    """Yield a block for each chunk of at least `chunk_tiles` tiles, except the last of a pass.

    The streams are of the tile set at `uri`, with the fields of a `Planner` but for the manifest.
    """
    manifest = read_manifest(uri, storage)
    planners = {name: Planner(manifest=manifest, **values) for name, values in streams.items()}
    for name, of in entries:
        yield from (chunk.to_block() for chunk in chunks_of(planners[name], name, of, chunk_tiles))


def without_manifest(planner: Planner) -> dict[str, Any]:
    """The fields of a planner that are sent to where it plans."""
    return {each.name: getattr(planner, each.name) for each in fields(planner) if each.name != "manifest"}


def chunks_of(planner: Planner, stream: str, of: Pass, chunk_tiles: int) -> Iterator[Chunk]:
    """Cut the requests of one pass, in their order, into chunks."""
    steps, places = planner.plan(of)
    waiting: list[ReadRequest] = []

    def chunk(*, last: bool) -> Chunk:
        return _chunk(stream, of.epoch, last, waiting, places)

    for read in chain.from_iterable(places.reads(step.opened) for step in steps):
        if sum(len(each.entries) for each in waiting) >= chunk_tiles:
            yield chunk(last=False)
            waiting = []
        waiting.append(read)
    yield chunk(last=True)


def _chunk(stream: str, epoch: int, last: bool, reads: list[ReadRequest], places: SampleIndex) -> Chunk:
    entries = np.concatenate([np.zeros(0, np.int64), *(read.entries for read in reads)])
    return Chunk(stream, epoch, last, reads, places.tiles_of(entries), places.copies_of(entries))
