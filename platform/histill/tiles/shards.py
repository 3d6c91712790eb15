"""Shards: Parquet files of encoded tiles."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from histill.config.common import Storage
from histill.storage.tables import write_table
from histill.tiles.contents import Expected, content_hash
from histill.tiles.manifest import Manifest
from histill.tiles.schema import SHARD

__all__ = ["Tile", "TileShard", "content_hash", "shards_of", "write_shard"]


@dataclass(frozen=True)
class Tile:
    """One encoded tile and its entries in the manifest; `x` and `y` are level-0 pixels, `mpp` is um/px."""

    tile_id: str
    slide: str
    case: str
    x: int
    y: int
    mpp: float
    label: str | None
    image: bytes
    mask: bytes | None
    notes: tuple[str, ...] = ()  # conversions applied to the image
    class_pixels: Mapping[int, int] = field(default_factory=dict)  # of each class in the mask
    kept: tuple[str | None, ...] = ()  # its values in the columns of the index that the set keeps


def write_shard(uri: str, tiles: Iterable[Tile], rows_per_group: int, storage: Storage) -> int:
    """Write `tiles` to one Parquet file, atomically; return its bytes. Raises InputError when the storage refuses.

    They are taken as the file grows, one row group after the other.
    """
    # JPEG and PNG do not compress further, and uncompressed row groups save the reader a copy.
    return write_table(uri, _groups(iter(tiles), rows_per_group), SHARD, storage)


def _groups(tiles: Iterator[Tile], rows: int) -> Iterator[pa.Table]:
    while group := list(islice(tiles, rows)):
        columns = {
            "tile_id": [tile.tile_id for tile in group],
            "image": [tile.image for tile in group],
            "mask": [tile.mask for tile in group],
        }
        yield pa.Table.from_pydict(columns, schema=SHARD)


@dataclass(frozen=True)
class TileShard:
    """A shard of a tile set: `tiles` rows of the manifest from `first` on, in the order of the shard."""

    shard: str
    first: int
    tiles: int
    expected: Expected | None = field(default=None, compare=False, repr=False)  # None: do not verify what is read

    def plain(self) -> dict[str, Any]:
        """The shard as plain values, without `expected`."""
        return {"shard": self.shard, "first": self.first, "tiles": self.tiles}


def shards_of(manifest: Manifest) -> list[TileShard]:
    """The shards in manifest order, which is the order of their tiles."""
    found, first = [], 0
    for (name,), count in manifest.count("shard"):
        found.append(TileShard(name, first, count, manifest.rows.expected(first, count)))
        first += count
    return found
