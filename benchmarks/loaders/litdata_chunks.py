"""litData: chunks of about its default size made by `optimize`, fetched whole into a local cache.

Set up as its documentation advises: StreamingDataset with a `transform` that decodes, StreamingDataLoader with two
workers, obstore as the client. Chunks divide evenly between the two workers, since a chunk that both need causes waits.
Tiles are stored as bytes, since litData's own image types use other decoders. In order, not shuffled, like the others.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import boto3.s3.transfer  # noqa: F401  both are imported in each worker otherwise
import litdata
import litdata.streaming.downloader
import obstore.store  # noqa: F401
import torch

from benchmarks.loaders.cases import BATCH, WORKERS, decode
from benchmarks.loaders.target import Target, shards_of

FORMAT = "litdata"
# obstore refuses a plain http endpoint otherwise, and litData has no option for it
litdata.streaming.downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"


def write(tiles: Sequence[Path], target: Target) -> None:
    """Chunks of encoded tiles."""
    folder = target.scratch / "chunks"
    litdata.optimize(
        fn=Path.read_bytes,
        inputs=list(tiles),
        output_dir=str(folder),
        chunk_size=len(shards_of(tiles)[0]),
        num_workers=1,
        verbose=False,
    )
    target.upload(folder)


def batches(case: str, target: Target, tiles: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches of 64, uint8 [B, 3, side, side] for each side of the case."""
    dataset = litdata.StreamingDataset(
        target.uri,
        cache_dir=str(target.scratch / "cache"),
        shuffle=False,
        drop_last=False,
        transform=partial(_views, case=case),
    )
    for views in litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS):
        yield tuple(view.permute(0, 3, 1, 2) for view in views)


def _views(jpeg: bytes, case: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(view) for view in decode(jpeg, case))
