"""The stream of one worker: an epoch of training from any step, or one exact pass for evaluation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from histill.stream.batches import Decoding, TileBatch, ahead, decoded_batches
from histill.stream.graph import encoded_tables
from histill.stream.plan import PADDING, epoch_batches, group_ids, of_worker, sequential_batches
from histill.stream.read import GroupRead, Source, reads_for
from histill.tiles.manifest import Manifest


@dataclass(frozen=True)
class TileStream:
    """The tiles of one split as one worker sees them.

    `read` brings the encoded tables: by Ray Data across the cluster, or `read_groups` in this process.
    """

    manifest: Manifest
    source: Source
    split: str
    batch_size: int  # global
    worker: int
    workers: int
    read: Callable[[Source, Sequence[GroupRead]], Iterator[pa.Table]] = encoded_tables
    response_channels: int = 0
    threads: int = 2
    max_corrupt: int = 0

    @property
    def steps(self) -> int:
        """Global batches in an epoch."""
        return -(-len(self.manifest.rows_of(self.split)) // self.batch_size)

    def training_epoch(self, epoch: int, *, seed: int, flips: bool, from_step: int = 0) -> Iterator[TileBatch]:
        """This worker's part of the global batches `from_step`, ... of `epoch`; batch k is that of any world size."""
        return self._stream(self._plan(epoch, seed)[from_step:], epoch, seed if flips else None)

    def planned_tiles(self, epoch: int, *, seed: int, from_step: int = 0) -> int:
        """Tiles in the global batches `from_step`, ... of `epoch`: what all workers together must consume."""
        return int((self._plan(epoch, seed)[from_step:] != PADDING).sum())

    def exact_pass(self) -> Iterator[TileBatch]:
        """Every tile of the split once, over all workers together, as it is; the tail is padded, never dropped."""
        return self._stream(sequential_batches(self.manifest.rows_of(self.split), batch_size=self.batch_size), 0, None)

    def _plan(self, epoch: int, seed: int) -> np.ndarray:
        rows = self.manifest.rows_of(self.split)
        table = self.manifest.table.select(["shard", "row_group"]).take(rows)
        shards, row_groups = (table[name].to_numpy(zero_copy_only=False) for name in ("shard", "row_group"))
        return epoch_batches(rows, group_ids(shards, row_groups), batch_size=self.batch_size, seed=seed, epoch=epoch)

    def _stream(self, batches: np.ndarray, epoch: int, flips_seed: int | None) -> Iterator[TileBatch]:
        mine = of_worker(batches, self.worker, self.workers)
        how = Decoding(
            tile_px=self.manifest.header.tile_px,
            masks=self.source.masks,
            response_channels=self.response_channels,
            threads=self.threads,
            max_corrupt=self.max_corrupt,
            flips_seed=flips_seed,
            epoch=epoch,
        )
        tables = self.read(self.source, reads_for(self.manifest, mine))
        return ahead(decoded_batches(tables, mine, (batches >= 0).sum(1), self.manifest, how))
