"""The tiles of all runs, and the plan that a run must follow."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import simplejpeg

from histill.config.common import Storage
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.testing.tile_sets import write_tile_set
from histill.tiles.manifest_file import read_manifest
from histill.tiles.shards import Tile
from testbed.site import Site

TILES, TILE_PX, BATCH, EPOCHS = 96, 32, 8, 81


@dataclass(frozen=True)
class Setting:
    """The location of the tiles, and their plan."""

    tiles: str
    batches: Sequence[Sequence[Sequence[int]]]  # for one more epoch than any run has
    per_epoch: int


def make_tiles(where: Site) -> Setting:
    """Write tiles of noise and discs to the site's bucket; return them with the plan of their epochs."""
    random = np.random.default_rng(0)
    tiles, splits = [], []
    for number in range(TILES):
        case = number * 6 // TILES
        tiles.append(
            Tile(
                tile_id=f"case-{case}/{number}",
                slide=f"case-{case}",
                case=f"case-{case}",
                x=number * TILE_PX,
                y=0,
                mpp=0.5,
                label=None,
                image=drawn(random),
                mask=None,
            )
        )
        splits.append("train" if case < 4 else "val" if case == 4 else "test")
    storage, uri = Storage(), f"s3://{where.s3.bucket}/tiles"
    with patch.dict(os.environ, where.s3.environment()):
        write_tile_set(uri, tiles, splits, tile_px=TILE_PX, per_shard=8, per_group=4, storage=storage)
        manifest = read_manifest(uri, storage)
    stream = TileStream(
        manifest=manifest,
        source=TileSource(uri, manifest.header.digest, storage),
        split="train",
        views=Views(TILE_PX),
        batch_size=BATCH,
        worker=0,
        workers=1,
    )
    with patch.dict(os.environ, where.s3.environment()):
        batches = [
            [[tile for tile in batch.index.tolist() if tile >= 0] for batch in stream.training_epoch(epoch, seed=0)]
            for epoch in range(EPOCHS)
        ]
    return Setting(uri, batches, stream.steps)


def drawn(random: np.random.Generator) -> bytes:
    """A tile with a few dark discs on a pink background, as JPEG."""
    rows, columns = np.mgrid[:TILE_PX, :TILE_PX]
    image = np.full((TILE_PX, TILE_PX, 3), (230, 180, 210), np.float64)
    for row, column in random.uniform(0, TILE_PX, (3, 2)):
        image[(rows - row) ** 2 + (columns - column) ** 2 < random.uniform(3, 6) ** 2] = (110, 70, 150)
    noisy = (image + random.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(noisy, quality=95))
