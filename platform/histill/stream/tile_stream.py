"""The stream of one worker: an epoch of training from any step, or one exact pass for evaluation."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import tee

import numpy as np
import pyarrow as pa

from histill.config.augment import Augment
from histill.config.common import Storage
from histill.stream.batches import DecodeSpec, decode_batches
from histill.stream.buffers import Buffers
from histill.stream.index import SampleIndex, balance_groups
from histill.stream.plan import EpochPlan, Step, plan_steps, sequential_steps
from histill.stream.prefetch import prefetch
from histill.stream.read import ReadRequest, ShardReader, TileSource
from histill.stream.tile_batch import TileBatch
from histill.stream.views import UPRIGHT, Views
from histill.tiles.manifest import Manifest
from histill.tiles.shards import TileShard

Read = Callable[[TileSource, Iterable[ReadRequest]], Generator[pa.Table]]
"""What brings the encoded tables, in the order of the reads: a `ShardReader` in this process, or `read_by_ray_data`."""

_LEAST_BUFFER_TILES, _BUFFERED_BATCHES = 4096, 64


@dataclass(frozen=True)
class TileStream:
    """The tiles of one split as one worker sees them. A batch's memory is used again once nobody refers to it."""

    manifest: Manifest
    source: TileSource
    split: str
    views: Views
    batch_size: int  # global
    worker: int
    workers: int
    cases: frozenset[str] | None = None  # of the split, those that are used; None: all
    only: np.ndarray | None = None  # int64, ascending rows of the manifest: these alone, whatever their split
    labels: np.ndarray | None = None  # int64 [tiles of the manifest], class indices that batches bring
    read: Read = field(default_factory=ShardReader)
    threads: int = 2
    max_corrupt: int = 0
    buffer_tiles: int | None = None  # held for mixing, over all workers; None: enough for a good mix
    balance: str | None = None  # the manifest's column whose values have an equal share of an epoch
    groups: np.ndarray | None = None  # int64 [tiles of the manifest], groups to balance in place of a column's

    @cached_property
    def places(self) -> SampleIndex:
        """Raises InputError when the split is empty."""
        if self.only is not None:
            return SampleIndex.at(self.manifest, self.only)
        return SampleIndex.of(self.manifest, self.split, self.cases)

    @cached_property
    def _buffers(self) -> Buffers:
        return Buffers()

    @property
    def tiles(self) -> int:
        """Tiles of the split, and of an epoch."""
        return len(self.places.tiles)

    @property
    def steps(self) -> int:
        """Global batches in an epoch."""
        return -(-self.tiles // self.batch_size)

    def tiles_of_epoch(self, epoch: int, *, seed: int) -> np.ndarray:
        """The manifest rows (int64, ascending) that all workers together must consume in `epoch`."""
        return self._places_of(epoch, seed).tiles

    def training_epoch(
        self, epoch: int, *, seed: int, augment: Augment = UPRIGHT, from_step: int = 0
    ) -> Iterator[TileBatch]:
        """This worker's part of the global batches `from_step`, ... of `epoch`; batch k is that of any world size."""
        places = self._places_of(epoch, seed)
        buffer_tiles = self.buffer_tiles or max(_LEAST_BUFFER_TILES, _BUFFERED_BATCHES * self.batch_size)
        plan = EpochPlan(places.starts, self.batch_size, seed, epoch, buffer_tiles)
        return self._stream(plan_steps(plan, self.worker, self.workers, from_step), places, epoch, seed, augment)

    def exact_pass(self, *, padded: bool = True) -> Iterator[TileBatch]:
        """Every tile of the split once, over all workers together; the tail is `padded` or shorter, never dropped.

        A tile is shown as it is, or, where the cached responses are to several views, in the first of these.
        """
        steps = sequential_steps(self.places.starts, self.worker, self.workers, self.batch_size, padded=padded)
        return self._stream(steps, self.places, 0, 0, UPRIGHT)

    def _places_of(self, epoch: int, seed: int) -> SampleIndex:
        if self.groups is not None:
            groups = np.unique(self.groups[self.places.tiles], return_inverse=True)[1]
        elif self.balance is not None:
            groups = balance_groups(self.manifest, self.places.tiles, self.balance)
        else:
            return self.places
        return self.places.balanced(groups, seed=seed, epoch=epoch)

    def _stream(
        self, steps: Iterator[Step], places: SampleIndex, epoch: int, seed: int, augment: Augment
    ) -> Iterator[TileBatch]:
        cached = self.source.responses
        source = self.source if cached is None else replace(self.source, view=cached.view_of(epoch))
        how = DecodeSpec(
            tile_px=self.manifest.header.tile_px,
            views=self.views,
            augment=augment,
            seed=seed,
            epoch=epoch,
            labels=self.labels,
            masks=self.source.masks,
            threads=self.threads,
            max_corrupt=self.max_corrupt,
            responses=cached,
            maps=source.maps,
        )

        def batches() -> Iterator[TileBatch]:
            decoded, read = tee(steps)
            reads = (group for step in read for group in places.reads(step.opened))
            with closing(self.read(source, reads)) as tables:  # ends its threads, also when the consumer leaves
                yield from decode_batches(decoded, tables, places, self.manifest, self._buffers, how)

        return prefetch(batches())


def stream_shard(
    manifest: Manifest,
    shard: TileShard,
    storage: Storage,
    *,
    rows: np.ndarray,
    side_px: int,
    batch_size: int,
    read: Read | None = None,
) -> Iterator[TileBatch]:
    """The tiles of one shard for inference, each once and whole, in the order of the manifest; the tail is shorter.

    A tile that cannot be decoded is named in the log and not valid. Only the shard's part of the manifest is looked at.

    Args:
        rows: int64, ascending: those of the manifest that are wanted, all of this shard.
        side_px: at which tiles are shown.
        read: shared by the shards that one process reads; None: one of its own.

    Raises:
        InputError: the shard is missing, damaged, or holds other tiles than the manifest says.
    """
    part = replace(manifest, table=manifest.table.slice(shard.first, shard.tiles))
    stream = TileStream(
        manifest=part,
        source=TileSource(manifest.uri, manifest.header.digest, storage),
        split="",
        only=rows - shard.first,
        views=Views(side_px),
        batch_size=batch_size,
        worker=0,
        workers=1,
        max_corrupt=len(rows),  # counted over all shards by who asked
        read=read or ShardReader(),
    )
    for batch in stream.exact_pass(padded=False):
        yield replace(batch, index=batch.index + shard.first)
