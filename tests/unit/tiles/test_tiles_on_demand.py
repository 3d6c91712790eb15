"""Slides in object storage that are read by ranges show what the whole file shows, wherever one looks."""

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from openslide import OpenSlide
from PIL import Image

import histill.storage.sparse_file as sparse_file
import histill.tiles.slide_copies as slide_copies
from histill.config.common import Storage
from histill.config.ingest_tiles import SlideSource
from histill.errors import InputError
from histill.tiles.slide_files import open_slide, peek_slide
from histill.tiles.slides import SlideRow, read_overview
from histill.tiles.tiled_slide import TiledSlide
from histill.tiles.tiling import iter_tiles
from testbed.folder_bucket import FolderBucket, folder_bucket
from testbed.jpeg_tiff import JpegLevel, write_jpeg_tiff

pytestmark = pytest.mark.unit

STORAGE = Storage()
WSI = Path(__file__).parents[4] / "shared" / "data" / "wsi"
APERIO = "Aperio Image Library v11.2.1\n900x700|AppMag = 20|MPP = 0.4990"
WIDTH, HEIGHT, TILE = 900, 700, 64
BLOCK = 512  # less than a tile, and than what a buffered reader reads ahead


def picture() -> np.ndarray:
    """Noise, uint8 [HEIGHT, WIDTH, 3]: no two tiles are equal."""
    return np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def jpeg_levels(
    sampling: str, stated: bool = True, abbreviated: bool = True, missing: bool = True
) -> Iterator[JpegLevel]:
    """Levels of 1, 1/2 and 1/8, whose chroma sampling the directory states or not; of a tile there may be nothing."""
    for factor in (1, 2, 8):
        small = picture()[::factor, ::factor]
        rows, columns = (-(-side // TILE) for side in small.shape[:2])
        padding = [(0, rows * TILE - small.shape[0]), (0, columns * TILE - small.shape[1]), (0, 0)]
        filled = np.pad(small, padding, mode="edge")
        parts = [
            np.ascontiguousarray(filled[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE])
            for row in range(rows)
            for column in range(columns)
        ]
        jpegs = [simplejpeg.encode_jpeg(part, 80, colorsubsampling=sampling) for part in parts]
        if missing and factor == 1:
            jpegs[20] = b""
        stating = {"444": (1, 1), "420": (2, 2)}[sampling] if stated else ()
        extent = small.shape[1], small.shape[0]
        yield JpegLevel(*extent, TILE, jpegs, 0.5 * factor, sampling=stating, abbreviated=abbreviated)  # type: ignore[arg-type]


def write_aperio(path: Path, **options: Any) -> Path:
    """Levels of 1, 1/4 and 1/8, and what is not tiled: thumbnail, label and macro image."""
    tiled = {"tile": (TILE, TILE), "photometric": "rgb", "metadata": None, **options}
    with tifffile.TiffWriter(path) as writer:
        for factor in (1, 0, 4, 8):
            if factor:
                writer.write(picture()[::factor, ::factor], description=APERIO, **tiled)
            else:
                striped = {"rowsperstrip": 16, "photometric": "rgb", "metadata": None}
                writer.write(picture()[::6, ::6], description=APERIO, **striped)
        for name in ("label", "macro"):
            writer.write(picture()[:90, :70], description=f"Aperio\n{name} 70x90", subfiletype=1, **striped)
    return path


KINDS: dict[str, Callable[[Path], Path]] = {
    "jpeg 444": lambda path: write_jpeg_tiff(path, jpeg_levels("444")),
    "jpeg 420": lambda path: write_jpeg_tiff(path, jpeg_levels("420")),
    "sampling that only the first tile tells": lambda path: write_jpeg_tiff(path, jpeg_levels("444", stated=False)),
    "whole jpegs": lambda path: write_jpeg_tiff(path, jpeg_levels("420", abbreviated=False)),
    "aperio jpeg": lambda path: write_jpeg_tiff(path, jpeg_levels("444", missing=False), APERIO),
    "aperio deflate": lambda path: write_aperio(path, compression="zlib"),
    "aperio plain": write_aperio,
    "planar": lambda path: write_planar(path),
}


def write_planar(path: Path) -> Path:
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for factor in (1, 2):
            pixels = picture()[::factor, ::factor].transpose(2, 0, 1)
            writer.write(
                pixels, tile=(TILE, 128), photometric="rgb", planarconfig="separate", compression="zlib", metadata=None,
                subfiletype=int(factor > 1),
            )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FolderBucket]:
    """A stand-in for the bucket `b` with a slide of each kind; small blocks, and none is too small for ranges."""
    root = tmp_path_factory.mktemp("buckets")
    (root / "b").mkdir()
    for kind, write in KINDS.items():
        write(root / "b" / f"{kind}.tiff")
    with pytest.MonkeyPatch.context() as patch, folder_bucket(root) as found:
        patch.setattr(sparse_file, "BLOCK", BLOCK)
        patch.setattr(sparse_file, "GAP", 1)
        patch.setattr(slide_copies, "SMALL", 0)
        yield found


def region(slide: OpenSlide, x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
    return np.asarray(slide.read_region((x, y), level, (width, height)))


X, Y, SIDE = st.integers(-100, WIDTH + 50), st.integers(-100, HEIGHT + 50), st.integers(1, 300)
PLACES = st.tuples(X, Y, st.integers(0, 2), SIDE, SIDE)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(st.lists(PLACES, min_size=1, max_size=3))
def test_any_region_is_that_of_the_whole_file(
    bucket: FolderBucket, kind: str, places: list[tuple[int, int, int, int, int]]
) -> None:
    with OpenSlide(bucket.root / "b" / f"{kind}.tiff") as whole, open_slide(f"s3://b/{kind}.tiff", STORAGE) as slide:
        assert slide._on_demand is not None
        for x, y, level, width, height in places:
            level = min(level, whole.level_count - 1)
            expected = region(whole, x, y, level, width, height)
            np.testing.assert_array_equal(region(slide, x, y, level, width, height), expected)
            over_white = Image.alpha_composite(Image.new("RGBA", (width, height), "white"), Image.fromarray(expected))
            found = slide.read_rgb(x, y, level, width, height)
            np.testing.assert_array_equal(found, np.asarray(over_white.convert("RGB")))


@pytest.mark.parametrize("kind", KINDS)
def test_what_describes_a_slide_is_that_of_the_whole_file(bucket: FolderBucket, kind: str) -> None:
    path = bucket.root / "b" / f"{kind}.tiff"
    for opened in (open_slide, peek_slide):
        bucket.ranges.clear()
        with OpenSlide(path) as whole, opened(f"s3://b/{kind}.tiff", STORAGE) as slide:
            assert slide is not None
            assert slide.level_dimensions == whole.level_dimensions
            assert slide.level_downsamples == whole.level_downsamples
            assert dict(slide.properties) == dict(whole.properties)
            assert "openslide.quickhash-1" in slide.properties
            assert bucket.bytes_read < path.stat().st_size * 0.35
            for name, image in whole.associated_images.items():
                assert slide.associated_images[name].tobytes() == image.tobytes()
            assert ("label" in slide.associated_images) == (kind in ("aperio deflate", "aperio plain"))


@pytest.mark.skipif(not WSI.exists(), reason="the slides are not here")
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs"])
def test_real_slides(bucket: FolderBucket, name: str) -> None:
    """JPEG, and JPEG 2000, which is left to OpenSlide."""
    shutil.copy(WSI / name, bucket.root / "b" / name)
    bucket.ranges.clear()
    with OpenSlide(WSI / name) as whole, open_slide(f"s3://b/{name}", STORAGE) as slide:
        assert slide._on_demand is not None
        assert dict(slide.properties) == dict(whole.properties)
        for level in range(whole.level_count):
            expected = region(whole, 701, 509, level, 300, 200)
            np.testing.assert_array_equal(region(slide, 701, 509, level, 300, 200), expected)
        assert slide.associated_images["thumbnail"].tobytes() == whole.associated_images["thumbnail"].tobytes()
    assert bucket.bytes_read <= (WSI / name).stat().st_size


def test_threads_read_one_slide_and_nothing_is_read_twice(bucket: FolderBucket) -> None:
    name = "jpeg 420"
    path = bucket.root / "b" / f"{name}.tiff"
    corners = [(x, y) for y in range(0, HEIGHT, 90) for x in range(0, WIDTH, 110)]
    with OpenSlide(path) as whole, open_slide(f"s3://b/{name}.tiff", STORAGE) as slide, ThreadPoolExecutor(6) as pool:
        start = threading.Barrier(6)
        [each.result() for each in [pool.submit(start.wait) for _ in range(6)]]
        bucket.ranges.clear()
        read = list(pool.map(lambda corner: region(slide, *corner, 0, 130, 100), corners))
        for corner, pixels in zip(corners, read, strict=True):
            np.testing.assert_array_equal(pixels, region(whole, *corner, 0, 130, 100))
        assert bucket.bytes_read < path.stat().st_size
        bucket.ranges.clear()
        region(slide, 0, 0, 0, WIDTH, HEIGHT)
        read_overview(slide, 16.0)
        assert bucket.bytes_read < path.stat().st_size * 0.2
        bucket.ranges.clear()
        read_overview(slide, 16.0)
        assert bucket.ranges == []


@pytest.mark.parametrize("kind", ["jpeg 420", "aperio deflate"])
@pytest.mark.parametrize("mpp", [0.499, 0.8, 2.0])
def test_tiles_are_the_same_bytes(bucket: FolderBucket, kind: str, mpp: float) -> None:
    found = []
    for uri in (f"s3://b/{kind}.tiff", str(bucket.root / "b" / f"{kind}.tiff")):
        source = SlideSource(paths=(uri,), mpp=mpp, min_tissue=0.0)
        with open_slide(uri, STORAGE) as slide:
            found.append([tile.image for tile in iter_tiles(slide, SlideRow(uri, "case"), source, 32)])
    assert found[0] == found[1]
    assert len(found[0]) > 10


def test_tiles_are_decoded_here_as_those_of_a_local_slide(bucket: FolderBucket) -> None:
    path = str(bucket.root / "b" / "jpeg 420.tiff")
    with open_slide("s3://b/jpeg 420.tiff", STORAGE) as slide, TiledSlide(path) as whole:
        jpeg = slide.read_jpeg(TILE * 3, TILE * 2, 0, TILE)
        assert jpeg is not None
        assert jpeg == whole.read_jpeg(TILE * 3, TILE * 2, 0, TILE)
        slide.read_rgb(0, 0, 1, 100, 100)
        assert slide._checked == {0, 1}


def test_a_slide_that_is_replaced_while_it_is_read(bucket: FolderBucket) -> None:
    path = write_aperio(bucket.root / "b" / "changed.tiff")
    with open_slide("s3://b/changed.tiff", STORAGE) as slide:
        slide.read_rgb(0, 0, 0, 64, 64)
        path.write_bytes(path.read_bytes())
        with pytest.raises(InputError, match=r"s3://b/changed\.tiff has been replaced or removed while it was read"):
            slide.read_rgb(500, 500, 0, 64, 64)
    path.unlink()


def test_what_is_no_tiff_of_plain_pages_is_fetched_whole(
    bucket: FolderBucket, write_dicom: Callable[[Path], list[str]]
) -> None:
    """Leica's pages lie beside each other on the slide: their levels are no pages."""
    path = bucket.root / "b" / "other.tiff"
    xml = '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"></scn>'
    tifffile.imwrite(path, picture(), tile=(TILE, TILE), photometric="rgb", description=xml, metadata=None)
    uri = "s3://b/other.tiff"
    with peek_slide(uri, STORAGE) as slide:
        assert slide is None
    bucket.ranges.clear()
    with pytest.raises(InputError, match=r"is damaged|not in a format"), open_slide(uri, STORAGE):
        pass
    assert bucket.bytes_read >= path.stat().st_size
    write_dicom(bucket.root / "b" / "dicom")
    with peek_slide("s3://b/dicom/level-0.dcm", STORAGE) as slide:
        assert slide is None


def test_a_tile_that_aperio_left_out_is_drawn_from_another_level(bucket: FolderBucket) -> None:
    """The slide is fetched whole: which tiles take the place of which is OpenSlide's to know."""
    path = write_jpeg_tiff(bucket.root / "b" / "left-out.tiff", jpeg_levels("444"), APERIO)
    with peek_slide("s3://b/left-out.tiff", STORAGE) as slide:
        assert slide is None
    with OpenSlide(path) as whole, open_slide("s3://b/left-out.tiff", STORAGE) as slide:
        for level in range(3):
            np.testing.assert_array_equal(region(slide, 280, 30, level, 50, 50), region(whole, 280, 30, level, 50, 50))


def test_a_damaged_directory_is_left_to_openslide(bucket: FolderBucket) -> None:
    data = bytearray((bucket.root / "b" / "jpeg 420.tiff").read_bytes())
    data[8:16] = (len(data) - 20).to_bytes(8, "little")
    (bucket.root / "b" / "damaged.tiff").write_bytes(data)
    with (
        pytest.raises(InputError, match=r"^slide s3://b/damaged\.tiff [^\n]*\.$"),
        open_slide("s3://b/damaged.tiff", STORAGE),
    ):
        pass
