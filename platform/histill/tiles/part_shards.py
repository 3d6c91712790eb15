"""Write the tiles of a part of an ingest to its shards, with their rows of the manifest."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain, islice

import pyarrow as pa

from histill.config.ingest_tiles import IngestConfig
from histill.storage.uris import join
from histill.tiles.schema import manifest_schema
from histill.tiles.shards import Tile, content_hash, write_shard
from histill.tiles.slide_index import SlideRow
from histill.tiles.splits import assign_split
from histill.tiles.tiling import Squares, name_tile

SHARDS = "shards"


@dataclass(frozen=True)
class PartShards:
    """Of some shards: the rows of their tiles, their sizes in bytes by name, and the pixels of each class in masks."""

    rows: pa.Table
    sizes: dict[str, int]
    class_pixels: Counter[int] = field(default_factory=Counter)

    @classmethod
    def join(cls, shards: Sequence["PartShards"], kept: Sequence[str] = ()) -> "PartShards":
        """Several, in their order, whose rows keep these columns of the index; none have no rows."""
        rows = pa.concat_tables([manifest_schema(kept).empty_table(), *(each.rows for each in shards)])
        sizes = {name: size for each in shards for name, size in each.sizes.items()}
        return cls(rows, sizes, sum((each.class_pixels for each in shards), Counter[int]()))


def write_shards(tiles: Iterable[Tile], config: IngestConfig, name: str, first: int = 0) -> PartShards:
    """Write the tiles to shards of `rows_per_shard`, the last one shorter; `first` is the number of the first shard.

    Tiles are taken as they are written, so that memory holds one shard's bytes. Raises whatever the tiles raise, and
    InputError when the storage refuses.
    """
    waiting = iter(tiles)
    rows: list[dict[str, object]] = []
    sizes: dict[str, int] = {}
    pixels = Counter[int]()
    split = cache(partial(assign_split, rule=config.split))  # thousands of cases may be pinned

    def noted(shard: Iterable[Tile], name: str) -> Iterator[Tile]:
        for position, tile in enumerate(shard):
            rows.append(_manifest_row(tile, name, position, split(tile.case), config))
            pixels.update(tile.class_pixels)
            yield tile

    for tile in waiting:
        shard = _name_shard(name, first + len(sizes))
        full = noted(chain([tile], islice(waiting, config.rows_per_shard - 1)), shard)
        sizes[shard] = write_shard(join(config.output, shard), full, config.rows_per_group, config.storage)
    return PartShards(pa.Table.from_pylist(rows, schema=manifest_schema(config.keep_columns)), sizes, pixels)


def place_squares(row: SlideRow, squares: Squares, config: IngestConfig, name: str) -> PartShards:
    """The rows that `write_shards` would give the tiles of some squares, without a file; their content is empty."""
    split = assign_split(row.case, config.split)
    runs = enumerate(squares.divide(config.rows_per_shard))
    rows = [
        _manifest_row(name_tile(row, corner, squares, b""), _name_shard(name, number), position, split, config)
        for number, run in runs
        for position, corner in enumerate(run.corners)
    ]
    return PartShards(pa.Table.from_pylist(rows, schema=manifest_schema(config.keep_columns)), {})


def _name_shard(name: str, number: int) -> str:
    return f"{SHARDS}/{name}-{number:04d}.parquet"


def _manifest_row(tile: Tile, shard: str, position: int, split: str, config: IngestConfig) -> dict[str, object]:
    return {
        "tile_id": tile.tile_id,
        "slide": tile.slide,
        "case": tile.case,
        "x": tile.x,
        "y": tile.y,
        "mpp": tile.mpp,
        "size_px": config.tile_px,
        "label": tile.label,
        "has_mask": tile.mask is not None,
        "split": split,
        "shard": shard,
        "row_group": position // config.rows_per_group,
        "row": position % config.rows_per_group,
        "content": content_hash(tile.image, tile.mask),
        **dict(zip(config.keep_columns, tile.kept, strict=True)),
    }
