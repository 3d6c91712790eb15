"""histill's own stream: one process, a reader and two decoding threads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from benchmarks.loaders.cases import BATCH, SMALL_PX, WORKERS
from benchmarks.loaders.parquet_shards import write
from benchmarks.loaders.target import Target
from benchmarks.loaders.tiles import SIDE_PX

if TYPE_CHECKING:
    from histill.stream.tile_stream import TileStream

FORMAT = "parquet"
EPOCHS = 3

__all__ = ["EPOCHS", "FORMAT", "open_epochs", "write"]


@contextmanager
def open_epochs(case: str, target: Target) -> Iterator[Callable[..., Iterator[tuple[torch.Tensor, ...]]]]:
    """A function that gives the batches of the next epoch, whatever it is called with: a run has one stream for all."""
    stream, numbers = make_stream(case, target), iter(range(EPOCHS))
    yield lambda *_: read_epoch(stream, next(numbers))


def read_epoch(stream: "TileStream", epoch: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """The batches of one epoch, the larger view first."""
    for batch in stream.training_epoch(epoch, seed=0):
        yield (batch.student,) if batch.teacher is None else (batch.teacher, batch.student)


def make_stream(case: str, target: Target) -> "TileStream":
    """The stream of the views of the case."""
    from histill.config.common import Storage
    from histill.stream.read import TileSource
    from histill.stream.tile_stream import TileStream
    from histill.stream.views import Views
    from histill.tiles.manifest_file import read_manifest

    storage = Storage()
    views = {
        "full": Views(student_px=SIDE_PX),
        "small": Views(student_px=SMALL_PX),
        "pair": Views(student_px=SMALL_PX, teacher_px=SIDE_PX),
    }[case]
    manifest = read_manifest(target.uri, storage)
    return TileStream(
        manifest=manifest,
        source=TileSource(target.uri, manifest.header.digest, storage),
        split="train",
        views=views,
        batch_size=BATCH,
        worker=0,
        workers=1,
        threads=WORKERS,
    )
