"""torch's DataLoader over the same Parquet shards.

Set up as the documentation of IterableDataset shows it: each of two workers takes its share of the shards, decodes
tile by tile, and its collate function stacks a batch straight into shared memory, so that the main process copies
nothing. Shards are read row group by row group as in the bare loop.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.loaders.cases import BATCH, WORKERS, decode
from benchmarks.loaders.parquet_shards import shards, write
from benchmarks.loaders.target import Target, filesystem

FORMAT = "parquet"

__all__ = ["FORMAT", "batches", "write"]


class ParquetTiles(IterableDataset):
    """The decoded tiles of this worker's shards."""

    def __init__(self, paths: list[str], case: str) -> None:
        self.paths = paths
        self.case = case

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """The views of one tile after the other, uint8 [side, side, 3]."""
        worker = get_worker_info()
        store = filesystem()  # made here: the AWS library inside pyarrow does not survive a fork
        for path in self.paths[worker.id :: worker.num_workers]:
            with store.open_input_file(path) as file:
                parquet = pq.ParquetFile(file, pre_buffer=True)
                for group in range(parquet.num_row_groups):
                    for image in parquet.read_row_group(group, columns=["image"])["image"].combine_chunks():
                        jpeg = np.frombuffer(image.as_buffer(), np.uint8)  # the same memory; Arrow's is signed
                        yield tuple(torch.from_numpy(view) for view in decode(jpeg, self.case))


def batches(case: str, target: Target, tiles: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches of 64, uint8 [B, 3, side, side] for each side of the case."""
    loader = DataLoader(ParquetTiles(shards(target, tiles), case), batch_size=BATCH, num_workers=WORKERS)
    for views in loader:
        yield tuple(view.permute(0, 3, 1, 2) for view in views)
