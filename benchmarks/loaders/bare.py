"""The baseline: one thread, one row group at a time, decoded into one reused batch."""

from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import simplejpeg
import torch

from benchmarks.loaders.cases import BATCH, CASES, SMALL_PX, shrink
from benchmarks.loaders.parquet_shards import shards, write
from benchmarks.loaders.target import Target, filesystem

FORMAT = "parquet"

__all__ = ["FORMAT", "batches", "write"]


def batches(case: str, target: Target, tiles: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches of 64, uint8 [B, 3, side, side] for each side of the case; the next batch overwrites them."""
    sides = CASES[case]
    buffers = [np.empty((BATCH, side, side, 3), np.uint8) for side in sides]
    views = tuple(torch.from_numpy(buffer).permute(0, 3, 1, 2) for buffer in buffers)
    smallest = {"min_height": SMALL_PX, "min_width": SMALL_PX, "min_factor": 1} if case == "small" else {}
    store = filesystem()
    for path in shards(target, tiles):
        with store.open_input_file(path) as file:
            parquet = pq.ParquetFile(file, pre_buffer=True)
            for group in range(parquet.num_row_groups):
                images = parquet.read_row_group(group, columns=["image"])["image"].combine_chunks()
                for row, image in enumerate(images):
                    jpeg = np.frombuffer(image.as_buffer(), np.uint8)  # the same memory; Arrow's is signed
                    simplejpeg.decode_jpeg(jpeg, "RGB", buffer=buffers[0][row], **smallest)
                    if case == "pair":
                        shrink(buffers[0][row], buffers[1][row])
                yield views
