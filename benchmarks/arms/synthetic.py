"""Tile sets of generated tiles."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from histill.config.common import Storage
from histill.storage.uris import join
from histill.tiles.manifest import Manifest, write_manifest
from histill.tiles.schema import MANIFEST
from histill.tiles.shards import Tile, content_hash, write_shard


def write_tile_set(
    uri: str, tiles: Sequence[Tile], splits: Sequence[str], *, tile_px: int, per_shard: int, per_group: int,
    storage: Storage,
) -> Manifest:  # fmt: skip
    """Write `tiles`, each of its split, as shards and a manifest at `uri`."""
    rows: list[dict[str, Any]] = []
    for start in range(0, len(tiles), per_shard):
        shard, part = f"shards/{start:06d}.parquet", tiles[start : start + per_shard]
        write_shard(join(uri, shard), part, per_group, storage)
        rows += [
            {"tile_id": tile.tile_id, "slide": tile.slide, "case": tile.case, "x": tile.x, "y": tile.y, "mpp": tile.mpp}
            | {"size_px": tile_px, "label": tile.label, "has_mask": tile.mask is not None}
            | {"split": splits[start + place], "shard": shard, "row_group": place // per_group}
            | {"row": place % per_group, "content": content_hash(tile.image, tile.mask)}
            for place, tile in enumerate(part)
        ]
    table = pa.Table.from_pylist(rows, schema=MANIFEST)
    mpp = tiles[0].mpp
    return write_manifest(uri, table, tile_px=tile_px, mpp=mpp, ingest="generator", storage=storage)
