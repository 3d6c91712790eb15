"""Read the passes of a run in other processes: plan, read and perhaps decode there; take the tables in order."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil

import pyarrow as pa

from histill.stream.decode_spec import DecodeSpec
from histill.stream.passes import Pass
from histill.stream.ray_data.chunks import unpack_rows
from histill.stream.ray_data.decode import DecodeTiles, ReadTiles
from histill.stream.ray_data.plan_chunks import Entry, plan_chunks, without_manifest
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.tiles.manifest import Header

CHUNK_TILES = 512
"""Tiles that a task reads, or a few more: it takes whole row groups."""
_JPEG_RATIO = 9  # of pixels to bytes, where the size of the shards is not on record

Plan = Callable[[], Iterator[pa.Table]]
Work = ReadTiles | DecodeTiles
Execute = Callable[[Plan, Work, int], Generator[pa.Table]]
"""Applies the work to each block of the plan, in order, so many blocks ahead of the consumer: `RayDataGraph`."""


@dataclass
class PassReader:
    """Reads the passes of a run's streams from one execution, as long as they come in the order of its timetable.

    A pass that comes out of turn starts another execution: with what follows it in the timetable if it is an epoch, as
    when a run resumes, else on its own.
    """

    execute: Execute
    streams: Mapping[str, TileStream] = field(default_factory=dict)
    timetable: Sequence[Entry] = ()
    _expected: Sequence[Entry] = ()  # what the execution will yield
    _blocks: Generator[pa.Table] | None = None

    def __call__(self, name: str, of: Pass) -> Generator[pa.Table]:
        """Yield the tables of a pass in the order of its requests, with `image`, `pixels` or decoded views."""
        if self._expected[:1] != (entry := (name, of),):
            self._start(Entry(*entry))
        blocks, rest = self._blocks, self._expected[1:]
        self._expected = ()
        for block in blocks or ():
            table, last = unpack_rows(block)
            if last:
                self._expected = rest
            if len(table):
                yield table
            if last:
                return
        raise RuntimeError(f"the execution ended within pass {of.epoch} of {name}")

    def close(self) -> None:
        """End the execution, if there is one."""
        if self._blocks is not None:
            with suppress(ValueError):  # the thread of a pass that was left early is still in it, and will end it
                self._blocks.close()
        self._blocks, self._expected = None, ()

    def _start(self, first: Entry) -> None:
        self.close()
        of_run = Entry(first.stream, replace(first.of, from_step=0))
        follows = first.of.series.shuffled and of_run in self.timetable
        rest = self.timetable[self.timetable.index(of_run) + 1 :] if follows else ()
        entries = (first, *rest)
        streams = {name: self.streams[name] for name in dict.fromkeys(entry.stream for entry in entries)}
        (uri, storage) = next((each.manifest.uri, each.source.storage) for each in streams.values())
        planners = {name: without_manifest(each.planner) for name, each in streams.items()}
        # What the first batch of a pass needs, so that it is there when the pass begins.
        tiles = max(min(each.tiles, each.planner.shuffled_tiles) / each.workers for each in streams.values())
        self._blocks = self.execute(
            partial(plan_chunks, uri, storage, planners, entries, CHUNK_TILES),
            self._work({entry.stream: entry.of for entry in reversed(entries)}),
            ceil(tiles / CHUNK_TILES),
        )
        self._expected = entries

    def _work(self, passes: Mapping[str, Pass]) -> Work:
        """The work on these streams, of each of which one pass is given."""
        specs = {name: self.streams[name].spec(of) for name, of in passes.items()}
        header = next(iter(self.streams.values())).manifest.header
        decoded = {name for name, each in specs.items() if is_smaller_decoded(each.how, each.source, header)}
        sent = {name: replace(each, how=replace(each.how, labels=None)) for name, each in specs.items()}
        return DecodeTiles(sent, frozenset(decoded)) if decoded else ReadTiles(sent)


@dataclass(frozen=True)
class StreamPasses:
    """The passes of one of the streams that share a reader."""

    reader: PassReader
    name: str

    def __call__(self, of: Pass) -> Generator[pa.Table]:
        return self.reader(self.name, of)

    def close(self) -> None:
        """End the execution of all of them."""
        self.reader.close()


def is_smaller_decoded(how: DecodeSpec, source: TileSource, header: Header) -> bool:
    """Whether a tile's views are no more bytes than the tile as it is read."""
    if source.kept is not None:
        read = 3.0 * source.kept.side**2
    elif header.shard_bytes is not None:
        read = header.shard_bytes / max(1, header.tiles)
    else:
        read = 3 * header.tile_px**2 / _JPEG_RATIO
    return sum(3 * side * side for side in how.shown_px) <= read
