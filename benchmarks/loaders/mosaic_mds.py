"""MosaicML Streaming: MDS shards of its default size, fetched whole into a local cache.

Set up as its documentation advises: the dataset knows the batch size, decoding is in `__getitem__` of a
StreamingDataset, StreamingDataLoader has two workers. The tile is stored as bytes, since the column type `jpeg` decodes
with Pillow. In order, not shuffled: shuffling would make it fetch most shards before the first batch.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

# S3_ENDPOINT_URL is the name under which this library asks for the endpoint
os.environ.setdefault("S3_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT_URL", ""))

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

from benchmarks.loaders.cases import BATCH, WORKERS, decode
from benchmarks.loaders.target import Target

FORMAT = "mds"


def write(tiles: Sequence[Path], target: Target) -> None:
    """MDS shards with one column of encoded tiles."""
    folder = target.scratch / "mds"
    with MDSWriter(out=str(folder), columns={"image": "bytes"}) as writer:
        for file in tiles:
            writer.write({"image": file.read_bytes()})
    target.upload(folder)


class MdsTiles(StreamingDataset):
    """Decoded tiles."""

    def __init__(self, target: Target, case: str) -> None:
        super().__init__(remote=target.uri, local=str(target.scratch / "cache"), shuffle=False, batch_size=BATCH)
        self.case = case

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        """The views of a tile, uint8 [side, side, 3]."""
        return tuple(torch.from_numpy(view) for view in decode(super().__getitem__(index)["image"], self.case))


def batches(case: str, target: Target, tiles: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches of 64, uint8 [B, 3, side, side] for each side of the case."""
    for views in StreamingDataLoader(MdsTiles(target, case), batch_size=BATCH, num_workers=WORKERS):
        yield tuple(view.permute(0, 3, 1, 2) for view in views)
