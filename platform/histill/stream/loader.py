"""Tiles as an iterable dataset of torch, for training loops that are not histill's."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from histill.config.augment import Augment
from histill.stream.tile_batch import TileBatch
from histill.stream.tile_stream import TileStream


class TileLoader(IterableDataset[TileBatch]):
    """Batches of one split; each iteration is an epoch, shuffled anew and the same for the same seed.

    Takes the place of a `DataLoader`, since it reads ahead and decodes on threads of its own; where one is asked for,
    `DataLoader(loader, batch_size=None)` passes batches through. Under `torch.distributed` each rank gets its part of
    every batch, as does each worker of a `DataLoader`. Not shuffled, every tile is shown once and the last batch is
    shorter.
    """

    def __init__(self, stream: TileStream, *, shuffle: bool, seed: int, augment: Augment) -> None:
        self.stream, self.shuffle, self.seed, self.augment = stream, shuffle, seed, augment
        self.epoch = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.stream.steps

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` (from 0) the next one, as with torch's `DistributedSampler`."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[TileBatch]:
        stream = _split_among_workers(self.stream)
        if not self.shuffle:
            return stream.exact_pass(padded=False)
        epoch, self.epoch = self.epoch, self.epoch + 1
        return stream.training_epoch(epoch, seed=self.seed, augment=self.augment)


def _split_among_workers(stream: TileStream) -> TileStream:
    """The part of `stream` of this rank, and of this worker of a `DataLoader`."""
    rank, ranks = 0, 1
    if distributed.is_available() and distributed.is_initialized():
        rank, ranks = distributed.get_rank(), distributed.get_world_size()
    worker = get_worker_info()
    if worker is not None:
        torch.set_num_threads(1)
        rank, ranks = rank * worker.num_workers + worker.id, ranks * worker.num_workers
    return replace(stream, worker=rank, workers=ranks)
