"""histill's stream with `data.cache_decoded`: the first epoch, its start, fills the node's cache; the others read it.

For the small view only: a full one is nine times its JPEG, which is then cheaper to decode than to keep.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from benchmarks.loaders import ours
from benchmarks.loaders.cases import SMALL_PX
from benchmarks.loaders.parquet_shards import write
from benchmarks.loaders.target import Target
from benchmarks.loaders.tiles import SIDE_PX

FORMAT, EPOCHS = ours.FORMAT, ours.EPOCHS
CACHE_GB = 100

__all__ = ["EPOCHS", "FORMAT", "open_epochs", "write"]


@contextmanager
def open_epochs(case: str, target: Target) -> Iterator[Callable[..., Iterator[tuple[torch.Tensor, ...]]]]:
    """A function that gives the batches of the next epoch, whatever it is called with."""
    from histill.config.common import ShardCache
    from histill.stream.read import DecodedCacheSpec

    stream = ours.make_stream(case, target)
    storage = stream.source.storage.model_copy(
        update={"cache": ShardCache(folder=str(target.scratch / "cache"), max_gb=CACHE_GB)}
    )
    stream = replace(stream, source=replace(stream.source, storage=storage, kept=DecodedCacheSpec(SIDE_PX, SMALL_PX)))
    numbers = iter(range(EPOCHS))
    yield lambda *_: ours.read_epoch(stream, next(numbers))
