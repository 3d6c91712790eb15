"""Tiles of any TIFF look as in an independent decoder, or it is refused in one sentence."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histill.config.common import Storage
from histill.config.ingest_tiles import SlideSource
from histill.errors import InputError
from histill.tiles.slides import SlideRow, open_slide
from histill.tiles.tiling import iter_tiles

pytestmark = pytest.mark.unit

PX = 64
KINDS = ("rgb", "planar", "alpha", "fourth", "gray", "inverted", "palette", "16 bits", "turned")
REFUSED = ("fourth", "16 bits", "turned")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


def picture(width: int, height: int, seed: int) -> np.ndarray:
    """Soft colors, uint8 [height, width, 3]: what JPEG keeps nearly as it is."""
    small = np.random.default_rng(seed).integers(60, 200, (3, 3, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def write(path: Path, kind: str, rgb: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Write `rgb` as a TIFF of that kind; return how it looks on white, uint8 [height, width, 3]."""
    height, width = rgb.shape[:2]
    gray = rgb[..., 0]
    if kind == "gray":
        tifffile.imwrite(path, gray, photometric="minisblack", **options)
        return np.repeat(gray[..., None], 3, -1)
    if kind == "inverted":
        tifffile.imwrite(path, gray, photometric="miniswhite", **options)
        return np.repeat(255 - gray[..., None], 3, -1)
    if kind == "palette":
        colors = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 90)]).astype(np.uint16) * 257
        tifffile.imwrite(path, gray, photometric="palette", colormap=colors, **options)
        return (colors[:, gray] // 257).transpose(1, 2, 0).astype(np.uint8)
    if kind in ("alpha", "fourth"):
        alpha = np.where(np.arange(width) < width // 2, 255, 0).astype(np.uint8)[None, :, None].repeat(height, 0)
        extra = "unassalpha" if kind == "alpha" else "unspecified"
        tifffile.imwrite(path, np.concatenate([rgb, alpha], -1), photometric="rgb", extrasamples=[extra], **options)
        return np.where(alpha == 0, 255, rgb).astype(np.uint8)
    if kind == "planar":
        tifffile.imwrite(path, rgb.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", **options)
        return rgb
    deep = {"data": rgb.astype(np.uint16) * 16} if kind == "16 bits" else {"data": rgb}
    turned = {"extratags": [(274, "H", 1, 3, True)]} if kind == "turned" else {}
    tifffile.imwrite(path, **deep, photometric="rgb", **turned, **options)
    return rgb


@settings(max_examples=150)
@given(
    st.sampled_from(KINDS),
    st.integers(20, 300),
    st.integers(20, 300),
    st.sampled_from([32, 64, 128, 256]),
    st.sampled_from([None, "deflate"]),
    st.booleans(),
    st.integers(0, 99),
    st.sampled_from([1.0, 1.0, 2.0, 1.5]),
)
def test_any_kind_is_cut_as_it_looks_or_refused(
    folder: Path,
    kind: str,
    width: int,
    height: int,
    block: int,
    compression: str | None,
    big: bool,
    seed: int,
    scale: float,
) -> None:
    path = folder / "slide.tiff"
    options = {"tile": (block, block), "compression": compression, "bigtiff": big, "metadata": None}
    options |= {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    looks = write(path, kind, picture(width, height, seed), options)
    source = SlideSource(paths=(str(path),), mpp=0.5 * scale, min_tissue=0.0, jpeg_quality=98)
    if kind in REFUSED:
        with pytest.raises(InputError, match=r"^slide .*; [^\n]*\.$"), open_slide(str(path), Storage()):
            pass
        return
    with open_slide(str(path), Storage()) as slide:
        tiles = list(iter_tiles(slide, SlideRow(str(path), "case"), source, PX))
    side = int(PX * scale)
    assert [(tile.x, tile.y) for tile in tiles] == [
        (x, y) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)
    ]
    for tile in tiles:
        shown = looks[tile.y : tile.y + side, tile.x : tile.x + side]
        expected = np.asarray(Image.fromarray(shown).resize((PX, PX), Image.Resampling.BOX)).astype(float)
        found = np.asarray(Image.open(io.BytesIO(tile.image))).astype(float)
        assert np.abs(found - expected).mean() < (2 if kind != "alpha" else 4)
