"""Write synthetic H&E-like tile sets, and damage single tiles or shards of them."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

from histill.config.common import Storage
from histill.storage.control import read_bytes, write_bytes
from histill.storage.filesystems import arrow_filesystem
from histill.storage.uris import join
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import write_manifest
from histill.tiles.schema import manifest_schema
from histill.tiles.shards import Tile, content_hash, write_shard
from histill.tiles.whole_table import read_table

CASES = 6
ROWS_PER_GROUP, ROWS_PER_SHARD = 4, 8
MPP = 0.5
_LOCAL = Storage()


def draw_tile(seed: int, tile_px: int, nuclei: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Draw hematoxylin discs of 8 to 11 um diameter on eosin at 0.5 um/px, by inverse color deconvolution.

    Returns the tile, uint8 [tile_px, tile_px, 3], and the mask of its nuclei, uint8 [tile_px, tile_px] of 0 and 1.
    """
    from skimage.color import hed2rgb
    from skimage.filters import gaussian

    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:tile_px, :tile_px]
    mask = np.zeros((tile_px, tile_px), np.uint8)
    for _ in range(max(2, tile_px * tile_px // 1000) if nuclei else 0):
        row, column = random.uniform(0, tile_px, 2)
        mask |= (rows - row) ** 2 + (columns - column) ** 2 < random.uniform(8, 11) ** 2
    stains = np.zeros((tile_px, tile_px, 3))
    stains[..., 0] = 0.01 + 0.12 * gaussian(mask.astype(float), 0.7)
    stains[..., 1] = 0.05
    stains += random.normal(0, 0.004, stains.shape)
    image = (hed2rgb(stains.clip(0)) * 255).round().astype(np.uint8)
    return image, mask


def make_tile_set(
    uri: object,
    *,
    tiles: int = 24,
    cases: int = CASES,
    tile_px: int = 64,
    masks: bool = True,
    labels: bool = False,
    seed: int = 0,
    storage: Storage = _LOCAL,
) -> Manifest:
    """Write a tile set of `draw_tile` at `uri`, at 0.5 um/px, in shards of eight tiles in two row groups.

    Args:
        tiles: number of tiles, ordered by case; every fourth is a PNG, the others JPEGs.
        cases: number of cases; the last is in split test, the one before it in val, the others in train.
        tile_px: side of a tile in pixels.
        masks: add masks of background (0) and nuclei (1).
        labels: label every second tile "stroma", without nuclei, and the others "tumour"; else no tile has a label.
        seed: of the tiles' content.
    """
    drawn = [_synthetic_tile(number, number * cases // tiles, tile_px, masks, labels, seed) for number in range(tiles)]
    order = [int(tile.case.removeprefix("case-")) for tile in drawn]
    splits = ["train" if case < cases - 2 else "val" if case == cases - 2 else "test" for case in order]
    return write_tile_set(
        str(uri), drawn, splits, tile_px=tile_px, per_shard=ROWS_PER_SHARD, per_group=ROWS_PER_GROUP, storage=storage
    )


def write_tile_set(
    uri: str,
    tiles: Sequence[Tile],
    splits: Sequence[str],
    *,
    tile_px: int,
    per_shard: int,
    per_group: int,
    storage: Storage = _LOCAL,
    keep: Sequence[str] = (),
) -> Manifest:
    """Write `tiles`, with their `splits` and the columns that they `keep`, as shards and a manifest at `uri`."""
    rows: list[dict[str, Any]] = []
    for start in range(0, len(tiles), per_shard):
        shard, part = f"shards/{start // per_shard:04d}.parquet", tiles[start : start + per_shard]
        write_shard(join(uri, shard), part, per_group, storage)
        rows += [
            {"tile_id": tile.tile_id, "slide": tile.slide, "case": tile.case, "x": tile.x, "y": tile.y, "mpp": tile.mpp}
            | {"size_px": tile_px, "label": tile.label, "has_mask": tile.mask is not None}
            | {"split": splits[start + place], "shard": shard, "row_group": place // per_group}
            | {"row": place % per_group, "content": content_hash(tile.image, tile.mask)}
            | dict(zip(keep, tile.kept, strict=True))
            for place, tile in enumerate(part)
        ]
    table = pa.Table.from_pylist(rows, schema=manifest_schema(keep))
    return write_manifest(uri, table, tile_px=tile_px, mpp=tiles[0].mpp, ingest="synthetic", storage=storage)


def spoil_tile(manifest: Manifest, row: int, storage: Storage = _LOCAL) -> str:
    """Truncate the image of one tile within its shard; returns the tile's id."""
    return _change_tile(manifest, row, "image", lambda data: data[: len(data) // 2], storage)


def mark_mask(manifest: Manifest, row: int, value: int, storage: Storage = _LOCAL) -> str:
    """Write `value` into one pixel of a tile's mask and update the manifest; returns the tile's id."""

    def mark(data: bytes) -> bytes:
        mask = np.array(Image.open(io.BytesIO(data)))
        mask[-1, -1] = value
        return _png(mask)

    tile = _change_tile(manifest, row, "mask", mark, storage)
    rows = read_table(manifest).to_pylist()
    shard = pq.read_table(
        io.BytesIO(read_bytes(join(manifest.uri, rows[row]["shard"]), storage)), columns=["tile_id", "image", "mask"]
    )
    (changed,) = [each for each in shard.to_pylist() if each["tile_id"] == tile]
    rows[row]["content"] = content_hash(changed["image"], changed["mask"])
    header, table = manifest.header, pa.Table.from_pylist(rows, schema=manifest_schema(manifest.rows.kept))
    write_manifest(manifest.uri, table, tile_px=header.tile_px, mpp=header.mpp, ingest=header.ingest, storage=storage)
    return tile


def truncate_shard(manifest: Manifest, row: int, storage: Storage = _LOCAL) -> str:
    """Truncate the shard of one tile to half; returns the shard's URI."""
    uri = join(manifest.uri, read_table(manifest)["shard"][row].as_py())
    data = read_bytes(uri, storage)
    write_bytes(uri, data[: len(data) // 2], storage)
    return uri


def _synthetic_tile(number: int, case: int, tile_px: int, masks: bool, labels: bool, seed: int) -> Tile:
    nuclei = not labels or number % 2 == 0
    image, mask = draw_tile(seed * 100_003 + number, tile_px, nuclei)
    encoded = _png(image) if number % 4 == 3 else simplejpeg.encode_jpeg(image, quality=95, colorsubsampling="444")
    name = f"case-{case}"
    return Tile(
        tile_id=f"{name}/{number}",
        slide=name,
        case=name,
        x=number * tile_px,
        y=0,
        mpp=MPP,
        label=("tumour" if nuclei else "stroma") if labels else None,
        image=encoded,
        mask=_png(mask) if masks else None,
    )


def _change_tile(manifest: Manifest, row: int, column: str, change: Callable[[bytes], bytes], storage: Storage) -> str:
    place = read_table(manifest).slice(row, 1).to_pylist()[0]
    filesystem, path = arrow_filesystem(join(manifest.uri, place["shard"]), storage)
    shard = pq.read_table(path, filesystem=filesystem)
    rows = shard.to_pylist()
    (changed,) = [tile for tile in rows if tile["tile_id"] == place["tile_id"]]
    changed[column] = change(changed[column])
    pq.write_table(pa.Table.from_pylist(rows, shard.schema), path, filesystem=filesystem, row_group_size=ROWS_PER_GROUP)
    return str(place["tile_id"])


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()
