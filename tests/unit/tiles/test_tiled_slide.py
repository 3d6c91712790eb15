"""Tiles of TIFFs are decoded without OpenSlide: the pixels must be its own, and what it refuses is refused."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import tifffile
from openslide import OpenSlide
from PIL import Image

import histill.tiles.tiled_slide as tiled_slide
from histill.config.common import Storage
from histill.config.ingest_tiles import SlideSource
from histill.tiles.slide_files import open_slide
from histill.tiles.slides import SlideRow
from histill.tiles.sources import Unreadable
from histill.tiles.tiled_slide import TiledSlide
from histill.tiles.tiling import cut_squares, lay_out
from testbed.jpeg_tiff import RGB, YCBCR, JpegLevel, write_jpeg_tiff

pytestmark = pytest.mark.unit

WIDTH, HEIGHT = 900, 700
SAMPLINGS = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}
WSI = Path(__file__).parents[4] / "shared" / "data" / "wsi"


def jpegs(picture: np.ndarray, tile: int, **options: Any) -> Iterator[bytes]:
    """The tiles of a picture; those at its right and lower edge are filled up."""
    rows, columns = (-(-extent // tile) for extent in picture.shape[:2])
    padding = [(0, rows * tile - picture.shape[0]), (0, columns * tile - picture.shape[1]), (0, 0)]
    filled = np.pad(picture, padding, mode="edge")
    for row in range(rows):
        for column in range(columns):
            part = filled[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
            yield simplejpeg.encode_jpeg(np.ascontiguousarray(part), quality=75, **options)


def picture(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Grainy tissue in pink and violet, uint8 [height, width, 3]."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([180 + 40 * np.sin(x / 9), 90 + 50 * np.cos(y / 7), 160 + 50 * np.sin((x + y) / 11)], -1)
    return (waves + random.normal(0, 12, waves.shape)).clip(0, 255).astype(np.uint8)


def slide(path: Path, tile: int = 256, sampling: str = "444", **options: Any) -> Path:
    def level(factor: int) -> JpegLevel:
        small = picture()[::factor, ::factor]
        coded = jpegs(small, tile, colorsubsampling=sampling)
        extent = small.shape[1], small.shape[0]
        return JpegLevel(*extent, tile, coded, 0.5 * factor, sampling=SAMPLINGS[sampling], **options)

    return write_jpeg_tiff(path, [level(1), level(2)])


def drawn(path: Path, x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
    """What OpenSlide alone reads, over white."""
    with OpenSlide(path) as slide:
        region = slide.read_region((x, y), level, (width, height))
        return np.asarray(Image.alpha_composite(Image.new("RGBA", region.size, "white"), region).convert("RGB"))


REGIONS = [
    (0, 0, 0, 256, 256),
    (0, 0, 0, WIDTH, HEIGHT),
    (37, 211, 0, 301, 97),
    (512, 256, 0, 256, 256),
    (480, 240, 1, 200, 220),
    (643, 443, 0, WIDTH - 643, HEIGHT - 443),  # to the edge
    (700, 600, 0, 256, 256),  # beyond it
    (101, 55, 1, 64, 64),  # between two pixels of the level
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampling": "420"},
        {"sampling": "422", "tile": 240},
        {"tile": 240, "abbreviated": False},
        {"photometric": RGB},  # stored as other colors, which both must take for RGB
    ],
)
def test_pixels_are_those_of_openslide(tmp_path: Path, options: dict[str, Any]) -> None:
    path = slide(tmp_path / "a.tiff", **options)
    with TiledSlide(str(path)) as ours:
        for _ in range(2):  # the second time nothing is compared any more
            for region in REGIONS:
                np.testing.assert_array_equal(ours.read_rgb(*region), drawn(path, *region))
        assert ours._checked == {0, 1}


@pytest.mark.parametrize(
    ("options", "here"),
    [
        ({"compression": "zlib"}, True),
        ({"compression": "zlib", "predictor": True}, True),
        ({}, True),
        ({"compression": "zlib", "planarconfig": "separate"}, False),
    ],
)
def test_other_compressions(tmp_path: Path, options: dict[str, Any], here: bool) -> None:
    pixels = picture().transpose(2, 0, 1) if "planarconfig" in options else picture()
    tifffile.imwrite(tmp_path / "a.tiff", pixels, tile=(128, 256), photometric="rgb", **options)
    with TiledSlide(str(tmp_path / "a.tiff")) as ours:
        for region in [region for region in REGIONS if region[2] == 0]:
            np.testing.assert_array_equal(ours.read_rgb(*region), drawn(tmp_path / "a.tiff", *region))
        assert bool(ours._checked) == here


def test_tiles_are_decoded_here_and_not_by_openslide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TiledSlide(str(slide(tmp_path / "a.tiff"))) as ours:
        ours.read_rgb(0, 0, 0, 64, 64)
        monkeypatch.setattr(TiledSlide, "read_region", None)
        assert ours.read_rgb(256, 0, 0, 300, 256).shape == (256, 300, 3)


@pytest.mark.skipif(not WSI.exists(), reason="the slides are not here")
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs"])
def test_real_slides(name: str) -> None:
    """JPEG in RGB without a marker that says so; and JPEG 2000, which is left to OpenSlide."""
    with TiledSlide(str(WSI / name)) as ours:
        for region in [(0, 0, 0, 512, 512), (511, 1023, 0, 300, 400), (1800, 2000, 0, 256, 256)]:
            np.testing.assert_array_equal(ours.read_rgb(*region), drawn(WSI / name, *region))
        assert bool(ours._checked) == name.startswith("CMU")
        jpeg = ours.read_jpeg(480, 720, 0, 240)
        assert (jpeg is not None) == name.startswith("CMU")
        for decode in (simplejpeg.decode_jpeg, lambda data: np.asarray(Image.open(io.BytesIO(data)))) if jpeg else ():
            np.testing.assert_array_equal(decode(jpeg), drawn(WSI / name, 480, 720, 0, 240, 240))


def test_a_level_that_is_read_differently_is_left_to_openslide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = slide(tmp_path / "a.tiff")
    monkeypatch.setattr(tiled_slide, "_ADOBE", {YCBCR: 0})  # colors mistaken
    with TiledSlide(str(path)) as ours:
        for region in REGIONS[:3]:
            np.testing.assert_array_equal(ours.read_rgb(*region), drawn(path, *region))
        assert ours._checked == set()


def test_a_tile_that_was_not_scanned_or_is_damaged(tmp_path: Path) -> None:
    """Both are left to OpenSlide, which alone says what becomes of them."""
    coded = list(jpegs(picture(512, 512), 256))
    larger = next(jpegs(picture(512, 512), 512))
    damaged = {"damaged": coded[3][:700] + b"\xff\xd8" * 40, "cut": coded[3][:700], "larger": larger}
    for name, last in {"sparse": b"", **damaged}.items():
        path = tmp_path / f"{name}.tiff"
        write_jpeg_tiff(path, [JpegLevel(512, 512, 256, [*coded[:3], last], 0.5)])
        try:
            expected = drawn(path, 200, 200, 0, 256, 256)
        except Exception:
            with pytest.raises(Unreadable), open_slide(str(path), Storage()) as ours:
                ours.read_rgb(200, 200, 0, 256, 256)
            continue
        with open_slide(str(path), Storage()) as ours:
            ours.read_rgb(0, 0, 0, 256, 256)
            np.testing.assert_array_equal(ours.read_rgb(200, 200, 0, 256, 256), expected)


def test_tiles_are_the_same_whoever_reads_them_and_by_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = slide(tmp_path / "a.tiff", tile=240, sampling="420")
    row, storage = SlideRow(str(path), "case"), Storage()

    def tiles(mpp: float, threads: int) -> list[Any]:
        source = SlideSource(paths=(str(path),), mpp=mpp, min_tissue=0.0)
        with open_slide(str(path), storage) as ours:
            squares = lay_out(ours, row, source, 32, threads).kept(source.min_tissue)
            return list(cut_squares(ours, row, squares, source, 32, threads))

    with monkeypatch.context() as patch:
        patch.setattr(tiled_slide, "VENDORS", ())
        expected = {mpp: tiles(mpp, 1) for mpp in (0.5, 0.8, 1.0)}
    for mpp, found in expected.items():
        assert len(found) > 100
        for threads in (1, 2, 5):
            assert tiles(mpp, threads) == found


@pytest.mark.parametrize("sampling", ["444", "420"])
def test_the_slides_own_jpegs_are_kept(tmp_path: Path, sampling: str) -> None:
    """Where a tile is one of the slide's; the pixels are OpenSlide's, and others are encoded."""
    path = slide(tmp_path / "a.tiff", sampling=sampling)
    row = SlideRow(str(path), "case")
    for tile_px, mpp, kept in ((256, 0.5, True), (256, 1.0, True), (128, 0.5, False), (256, 0.7, False)):
        source = SlideSource(paths=(str(path),), mpp=mpp, min_tissue=0.0, keep_jpeg=True)
        with open_slide(str(path), Storage()) as ours:
            squares = lay_out(ours, row, source, tile_px).kept(0.0)
            tiles = list(cut_squares(ours, row, squares, source, tile_px, 2))
            again = source.model_copy(update={"keep_jpeg": False})
            encoded = list(cut_squares(ours, row, squares, again, tile_px))
        assert [tile.image == other.image for tile, other in zip(tiles, encoded, strict=True)] == [not kept] * len(
            tiles
        )
        for tile in tiles if kept else ():
            expected = drawn(path, tile.x, tile.y, int(mpp), tile_px, tile_px)  # 1.0 um/px is level 1
            np.testing.assert_array_equal(simplejpeg.decode_jpeg(tile.image), expected)
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(tile.image))), expected)


def test_a_damaged_jpeg_is_not_kept(tmp_path: Path) -> None:
    coded = list(jpegs(picture(512, 512), 256))
    coded[3] = coded[3][:700] + b"\xff\xd8" * 40
    path = write_jpeg_tiff(tmp_path / "a.tiff", [JpegLevel(512, 512, 256, coded, 0.5)])
    with TiledSlide(str(path)) as ours:
        assert ours.read_jpeg(0, 0, 0, 256) is not None
        assert ours.read_jpeg(256, 256, 0, 256) is None
        assert ours.read_jpeg(128, 0, 0, 256) is None
        assert ours.read_jpeg(256, 256, 1, 256) is None
