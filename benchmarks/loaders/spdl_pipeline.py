"""SPDL: the same Parquet shards through a pipeline of threads in one process.

Set up as its documentation advises for data that a process decodes: reading and decoding are stages with threads of
their own, and a stage decodes a whole batch into one array, since a task for each tile would cost more. The stages run
in completion order, as it advises where order does not matter.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import simplejpeg
import torch
from spdl.pipeline import PipelineBuilder

from benchmarks.loaders.cases import BATCH, CASES, SMALL_PX, WORKERS, shrink
from benchmarks.loaders.parquet_shards import shards, write
from benchmarks.loaders.target import Target, filesystem

FORMAT = "parquet"

__all__ = ["FORMAT", "batches", "write"]


def batches(case: str, target: Target, tiles: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches of 64, uint8 [B, 3, side, side] for each side of the case."""
    store, sides = filesystem(), CASES[case]
    smallest = {"min_height": SMALL_PX, "min_width": SMALL_PX, "min_factor": 1} if case == "small" else {}

    def read(path: str) -> Iterator[list[np.ndarray]]:
        with store.open_input_file(path) as file:
            parquet = pq.ParquetFile(file, pre_buffer=True)
            for group in range(parquet.num_row_groups):
                images = parquet.read_row_group(group, columns=["image"])["image"].combine_chunks()
                yield [np.frombuffer(image.as_buffer(), np.uint8) for image in images]

    def decode(jpegs: list[np.ndarray]) -> tuple[torch.Tensor, ...]:
        views = [np.empty((BATCH, side, side, 3), np.uint8) for side in sides]
        for row, jpeg in enumerate(jpegs):
            simplejpeg.decode_jpeg(jpeg, "RGB", buffer=views[0][row], **smallest)
            if case == "pair":
                shrink(views[0][row], views[1][row])
        return tuple(torch.from_numpy(view).permute(0, 3, 1, 2) for view in views)

    pipeline = (
        PipelineBuilder()
        .add_source(shards(target, tiles))
        .pipe(read, concurrency=1)
        .pipe(decode, concurrency=WORKERS)
        .add_sink(2)
        .build(num_threads=1 + WORKERS)
    )
    with pipeline.auto_stop():
        yield from pipeline
