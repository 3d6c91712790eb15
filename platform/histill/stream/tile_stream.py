"""The stream of one worker: an epoch of training from any step, or one exact pass for evaluation."""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import tee
from typing import Protocol

import numpy as np
import pyarrow as pa

from histill.config.augment import Augment
from histill.config.common import Storage
from histill.stream.batches import decode_batches
from histill.stream.buffers import Buffers
from histill.stream.decode_spec import DecodeSpec, PassSpec
from histill.stream.index import SampleIndex
from histill.stream.passes import Pass, Planner, Series
from histill.stream.prefetch import Prefetched
from histill.stream.read import ReadRequest, ShardReader, TileSource
from histill.stream.tile_batch import TileBatch
from histill.stream.views import UPRIGHT, Views
from histill.tiles.labels import TileLabels
from histill.tiles.manifest import Manifest
from histill.tiles.row_runs import RowRuns
from histill.tiles.shards import TileShard

Read = Callable[[TileSource, Iterable[ReadRequest]], Generator[pa.Table]]
"""Reads the encoded tables in the order of the requests: a `ShardReader`."""


class ReadPass(Protocol):
    """Reads the tables of a pass elsewhere, decoded or not, in the order of its requests."""

    def __call__(self, of: Pass) -> Generator[pa.Table]: ...

    def close(self) -> None:
        """End what reads ahead."""
        ...


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
    labels: TileLabels | None = None
    read: Read = field(default_factory=ShardReader)
    passes: ReadPass | None = None  # None: `read` reads, in this process
    threads: int = 2
    max_corrupt: int = 0
    buffer_tiles: int | None = None  # shuffle buffer over all workers; None: enough to mix well
    balance: str | None = None  # the manifest's column whose values each get an equal share of an epoch
    groups: np.ndarray | None = None  # int64 [tiles of the manifest], groups to balance instead of a column

    @cached_property
    def planner(self) -> Planner:
        """The order of this stream's tiles."""
        return Planner(**{each.name: getattr(self, each.name) for each in fields(Planner)})

    @property
    def places(self) -> SampleIndex:
        """The tiles to stream. Raises InputError when the split is empty."""
        return self.planner.places

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

    def tiles_of_epoch(self, epoch: int, *, seed: int) -> RowRuns | np.ndarray:
        """The manifest rows (ascending) that all workers together must consume in `epoch`."""
        return self.planner.places_of(epoch, seed).tiles

    def close(self) -> None:
        """End what reads ahead of the consumer in other processes."""
        if self.passes is not None:
            self.passes.close()

    def training_epoch(
        self, epoch: int, *, seed: int, augment: Augment = UPRIGHT, from_step: int = 0
    ) -> Prefetched[TileBatch]:
        """This worker's part of the global batches of `epoch` from `from_step` on; any world size sees the same."""
        return self._stream(Pass(Series(True, seed, augment), epoch, from_step))

    def exact_pass(self, *, padded: bool = True) -> Prefetched[TileBatch]:
        """Every tile of the split once over all workers; the last batch is `padded` or shorter, never dropped.

        Tiles are not augmented; if responses are cached for several views, each tile is shown in the first of these.
        """
        return self._stream(Pass(Series(False, padded=padded)))

    def spec(self, of: Pass) -> PassSpec:
        """What a pass reads, and how it is decoded."""
        how = DecodeSpec(
            tile_px=self.manifest.header.tile_px,
            views=self.views,
            augment=of.series.augment,
            seed=of.series.seed,
            epoch=of.epoch,
            labels=self.labels,
            masks=self.source.masks,
            threads=self.threads,
            max_corrupt=self.max_corrupt,
            responses=self.source.responses,
            maps=self.source.maps,
            embeddings=self.source.embeddings,
        )
        return PassSpec(self.source, how).of_epoch(of.epoch)

    def _stream(self, of: Pass) -> Prefetched[TileBatch]:
        steps, places = self.planner.plan(of)
        spec = self.spec(of)

        def batches() -> Generator[TileBatch, None, None]:
            decoded, read = tee(steps)
            reads = (group for step in read for group in places.reads(step.opened))
            tables = self.read(spec.source, reads) if self.passes is None else self.passes(of)
            with closing(tables):  # stops its threads, even if the consumer leaves early
                yield from decode_batches(decoded, tables, places, self.manifest, self._buffers, spec.how)

        return Prefetched(batches())


def stream_shard(
    manifest: Manifest,
    shard: TileShard,
    storage: Storage,
    *,
    rows: np.ndarray,
    side_px: int,
    batch_size: int,
    read: Read | None = None,
) -> Prefetched[TileBatch]:
    """Stream whole tiles of one shard for inference, each once, in manifest order; the last batch may be shorter.

    A tile that cannot be decoded is named in the log and marked invalid. Only the shard's part of the manifest is used.

    Args:
        rows: int64, ascending: the rows of the manifest to show, all in this shard.
        side_px: the side at which tiles are shown.
        read: a reader to share between the shards of one process; None: create one.

    Raises:
        InputError: the shard is missing, damaged, or does not hold the tiles that the manifest names.
    """
    stream = TileStream(
        manifest=manifest,
        source=TileSource(manifest.uri, manifest.header.digest, storage),
        split="",
        only=rows,
        views=Views(side_px),
        batch_size=batch_size,
        worker=0,
        workers=1,
        max_corrupt=len(rows),  # the caller counts over all shards
        read=read or ShardReader(),
    )
    return stream.exact_pass(padded=False)
