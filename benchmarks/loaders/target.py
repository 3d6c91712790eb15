"""The location of the loaders' data: one bucket, a prefix per format."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from benchmarks.loaders.cases import BATCH, WORKERS

if TYPE_CHECKING:
    from pyarrow import fs

SHARD_BYTES = 1 << 26  # the default of MosaicML Streaming and litData
_TILE_BYTES = 86_000
Tile = TypeVar("Tile")


@dataclass(frozen=True)
class Target:
    """A contender's prefix in the bucket, and a folder for its cache."""

    bucket: str
    prefix: str
    scratch: Path

    @property
    def uri(self) -> str:
        """s3://bucket/prefix."""
        return f"s3://{self.bucket}/{self.prefix}"

    def upload(self, folder: Path) -> None:
        """Copy the files of `folder` to the prefix."""
        from pyarrow import fs

        fs.copy_files(
            str(folder), f"{self.bucket}/{self.prefix}", fs.LocalFileSystem(), filesystem(), use_threads=False
        )


def filesystem() -> "fs.S3FileSystem":
    """pyarrow's client of the local server; credentials come from the environment."""
    from pyarrow import fs

    return fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], region=os.environ["AWS_DEFAULT_REGION"])


def shards_of(tiles: Sequence[Tile]) -> list[list[Tile]]:
    """`tiles` in shards of whole batches, of about SHARD_BYTES, so many that all workers have equally many tiles."""
    batches = [list(tiles[start : start + BATCH]) for start in range(0, len(tiles), BATCH)]
    count = WORKERS * max(1, round(len(tiles) * _TILE_BYTES / SHARD_BYTES / WORKERS))
    small, larger = divmod(len(batches), count)
    shards, start = [], 0
    for shard in range(count):
        stop = start + small + (shard < larger)
        shards.append([tile for batch in batches[start:stop] for tile in batch])
        start = stop
    return [shard for shard in shards if shard]
