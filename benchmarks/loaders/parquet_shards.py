"""The tile set of histill; the bare loop and the torch DataLoader read the same shards."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from benchmarks.loaders.cases import BATCH
from benchmarks.loaders.target import Target, shards_of
from benchmarks.loaders.tiles import SIDE_PX

MPP = 0.25


def write(tiles: Sequence[Path], target: Target) -> None:
    """Shards with row groups of one batch, and a manifest with every tile in `train`."""
    from histill.config.common import Storage
    from histill.tiles.manifest_file import write_manifest
    from histill.tiles.shards import Tile, content_hash, write_shard

    rows = []
    for number, files in enumerate(shards_of(tiles)):
        shard = shard_name(number)
        columns = 64  # tiles per row of the simulated slide
        shard_tiles = [
            Tile(
                tile_id=file.stem,
                slide=f"slide-{number}",
                case=f"case-{number}",
                x=place_in_shard % columns * SIDE_PX,
                y=place_in_shard // columns * SIDE_PX,
                mpp=MPP,
                label=None,
                image=file.read_bytes(),
                mask=None,
            )
            for place_in_shard, file in enumerate(files)
        ]
        write_shard(f"{target.uri}/{shard}", shard_tiles, BATCH, Storage())
        rows += [
            {
                "tile_id": tile.tile_id, "slide": tile.slide, "case": tile.case, "x": tile.x, "y": tile.y,
                "mpp": tile.mpp, "size_px": SIDE_PX, "label": None, "has_mask": False, "split": "train",
                "shard": shard, "row_group": row // BATCH, "row": row % BATCH,
                "content": content_hash(tile.image, None),
            }
            for row, tile in enumerate(shard_tiles)
        ]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    write_manifest(target.uri, table, tile_px=SIDE_PX, mpp=MPP, ingest="synthetic", storage=Storage())


def shards(target: Target, tiles: int) -> list[str]:
    """bucket/key of the shards of a set of `tiles`, in order; their names are known, so nothing is listed."""
    return [f"{target.bucket}/{target.prefix}/{shard_name(number)}" for number in range(len(shards_of(range(tiles))))]


def shard_name(number: int) -> str:
    """Relative to the tile set."""
    return f"shards/{number:05d}.parquet"
