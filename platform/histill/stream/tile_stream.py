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
"""Reads the encoded tables in the order of the requests: a `ShardReader` in this process, or `read_by_ray_data`."""

_LEAST_BUFFER_TILES, _BUFFERED_BATCHES = 4096, 64


@dataclass(frozen=True)
class TileStream:
    """The tiles of one split as one worker sees them. A batch's memory is reused once nothing refers to it."""

    manifest: Manifest
    source: TileSource
    split: str
    views: Views
    batch_size: int  # global
    worker: int
    workers: int
    cases: frozenset[str] | None = None  # the cases of the split to use; None: all
    only: np.ndarray | None = None  # int64, ascending rows of the manifest: only these, in any split
    labels: np.ndarray | None = None  # int64 [tiles of the manifest], class indices for the batches
    read: Read = field(default_factory=ShardReader)
    threads: int = 2
    max_corrupt: int = 0
    buffer_tiles: int | None = None  # shuffle buffer over all workers; None: enough to mix well
    balance: str | None = None  # the manifest's column whose values each get an equal share of an epoch
    groups: np.ndarray | None = None  # int64 [tiles of the manifest], groups to balance instead of a column

    @cached_property
    def places(self) -> SampleIndex:
        """The tiles to stream. Raises InputError when the split is empty."""
        if self.only is not None:
            return SampleIndex.at(self.manifest, self.only)
        return SampleIndex.of(self.manifest, self.split, self.cases)

    @cached_property
    def _buffers(self) -> Buffers:
        return Buffers()

    @property
    def tiles(self) -> int:
        """Number of tiles in the split, and in an epoch."""
        return len(self.places.tiles)

    @property
    def steps(self) -> int:
        """Number of global batches in an epoch."""
        return -(-self.tiles // self.batch_size)

    def tiles_of_epoch(self, epoch: int, *, seed: int) -> np.ndarray:
        """The manifest rows (int64, ascending) that all workers together must consume in `epoch`."""
        return self._places_of(epoch, seed).tiles

    def training_epoch(
        self, epoch: int, *, seed: int, augment: Augment = UPRIGHT, from_step: int = 0
    ) -> Iterator[TileBatch]:
        """This worker's part of the global batches of `epoch` from `from_step` on; any world size sees the same."""
        places = self._places_of(epoch, seed)
        buffer_tiles = self.buffer_tiles or max(_LEAST_BUFFER_TILES, _BUFFERED_BATCHES * self.batch_size)
        plan = EpochPlan(places.starts, self.batch_size, seed, epoch, buffer_tiles)
        return self._stream(plan_steps(plan, self.worker, self.workers, from_step), places, epoch, seed, augment)

    def exact_pass(self, *, padded: bool = True) -> Iterator[TileBatch]:
        """Every tile of the split once over all workers; the last batch is `padded` or shorter, never dropped.

        Tiles are not augmented; if responses are cached for several views, each tile is shown in the first of these.
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
        cached, embeddings = self.source.responses, self.source.embeddings
        answered = cached or next((each for _, each in embeddings), None)
        source = self.source if answered is None else replace(self.source, view=answered.view_of(epoch))
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
            embeddings=embeddings,
        )

        def batches() -> Iterator[TileBatch]:
            decoded, read = tee(steps)
            reads = (group for step in read for group in places.reads(step.opened))
            with closing(self.read(source, reads)) as tables:  # stops its threads, even if the consumer leaves early
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
    """Stream whole tiles of one shard for inference, each once, in manifest order; the last batch may be shorter.

    A tile that cannot be decoded is named in the log and marked invalid. Only the shard's part of the manifest is used.

    Args:
        rows: int64, ascending: the rows of the manifest to show, all in this shard.
        side_px: the side at which tiles are shown.
        read: a reader to share between the shards of one process; None: create one.

    Raises:
        InputError: the shard is missing, damaged, or does not hold the tiles that the manifest names.
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
        max_corrupt=len(rows),  # the caller counts over all shards
        read=read or ShardReader(),
    )
    for batch in stream.exact_pass(padded=False):
        yield replace(batch, index=batch.index + shard.first)
