"""WebDataset: tar shards, read in sequence.

Set up as its documentation advises: as many shards as go evenly into the two workers, batches made inside the
workers (`batched`, and WebLoader with batch_size=None), stacked by torch's collate function, which writes into shared
memory at once where WebDataset's own would copy once more.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from torch.utils.data import default_collate

from benchmarks.loaders.cases import BATCH, WORKERS, decode
from benchmarks.loaders.target import Target, shards_of

FORMAT = "webdataset"


def write(tiles: Sequence[Path], target: Target) -> None:
    """Tar files of the same tiles as the Parquet shards."""
    for number, files in enumerate(shards_of(tiles)):
        with wds.TarWriter(str(target.scratch / f"{number:06d}.tar")) as tar:
            for file in files:
                tar.write({"__key__": file.stem, "jpg": file.read_bytes()})
    target.upload(target.scratch)


def batches(case: str, target: Target, tiles: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches of 64, uint8 [B, 3, side, side] for each side of the case."""

    def views(sample: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(view) for view in decode(sample["jpg"], case))

    dataset = wds.WebDataset(_signed_urls(target, tiles), shardshuffle=False).map(views)
    dataset = dataset.batched(BATCH, collation_fn=default_collate)
    for batch in wds.WebLoader(dataset, batch_size=None, num_workers=WORKERS):
        yield tuple(view.permute(0, 3, 1, 2) for view in batch)


def _signed_urls(target: Target, tiles: int) -> list[str]:
    """http URLs with a signature, which WebDataset opens with curl: its own way, and lighter than `aws s3 cp`."""
    import boto3

    client = boto3.client("s3")
    keys = [f"{target.prefix}/{number:06d}.tar" for number in range(len(shards_of(range(tiles))))]
    return [client.generate_presigned_url("get_object", Params={"Bucket": target.bucket, "Key": key}) for key in keys]
