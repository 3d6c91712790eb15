"""The columns of a shard and of a manifest."""

from collections.abc import Iterable

import pyarrow as pa

SHARD = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),  # encoded JPEG or PNG, RGB
        pa.field("mask", pa.binary()),  # encoded PNG of class indices (uint8), or null
    ]
)

MANIFEST = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False),  # unique in the set
        pa.field("slide", pa.string(), nullable=False),
        pa.field("case", pa.string(), nullable=False),
        pa.field("x", pa.int32(), nullable=False),  # left edge, level-0 pixels of the slide
        pa.field("y", pa.int32(), nullable=False),  # top edge
        pa.field("mpp", pa.float64(), nullable=False),  # of the tile, um/px
        pa.field("size_px", pa.int32(), nullable=False),  # side of the square tile
        pa.field("label", pa.string()),
        pa.field("has_mask", pa.bool_(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train, val or test
        pa.field("shard", pa.string(), nullable=False),  # relative to the tile set's folder
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),  # within the row group
        pa.field("content", pa.string(), nullable=False),  # hex XXH3-128 of the image's bytes, then of the mask's
    ]
)


def manifest_schema(kept: Iterable[str] = ()) -> pa.Schema:
    """The columns of a manifest that keeps further columns of its index, as text; null where the index has nothing."""
    return pa.schema([*MANIFEST, *(pa.field(name, pa.string()) for name in kept)])


def kept_columns(schema: pa.Schema) -> tuple[str, ...]:
    """The columns of a manifest that are kept of its index."""
    return tuple(name for name in schema.names if name not in MANIFEST.names)
