"""Slides: their resolution, their grid and their pixels, on small pyramidal TIFFs."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from histill.config.common import Storage
from histill.config.ingest_tiles import SlideSource
from histill.errors import InputError
from histill.tiles.shards import Tile
from histill.tiles.slide_index import read_slide_index
from histill.tiles.slides import (
    SlideRow,
    find_level,
    open_slide,
    read_overview,
    read_square,
    resolve_mpp,
    scale_factor,
    slide_rows,
)
from histill.tiles.sources import Unreadable
from histill.tiles.tiling import iter_tiles, tissue_fractions

pytestmark = pytest.mark.unit

STORAGE = Storage()
SIDE = 1024
CMU = Path(__file__).parents[4] / "shared" / "data" / "wsi" / "CMU-1-Small-Region.svs"


def picture(side: int = SIDE) -> np.ndarray:
    """Smooth eosin-like waves in the left half, glass in the right."""
    y, x = np.mgrid[:side, :side].astype(np.float64) * (SIDE / side)
    rgb = np.full((side, side, 3), 244.0)
    tissue = x < SIDE / 2
    rgb[tissue] = np.stack([210 + 20 * np.sin(x / 40), 120 + 40 * np.cos(y / 50), 170 + 30 * np.sin(y / 30)], -1)[
        tissue
    ]
    return rgb.round().astype(np.uint8)


def write_slide(path: Path, mpp: float | tuple[float, float] | None = 0.5, levels: int = 3) -> Path:
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb"}
    if mpp is not None:
        across, down = mpp if isinstance(mpp, tuple) else (mpp, mpp)
        options |= {"resolution": (10_000 / across, 10_000 / down), "resolutionunit": "CENTIMETER"}
    base = picture()
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            factor = 2**level
            reduced = base.reshape(SIDE // factor, factor, SIDE // factor, factor, 3).mean(axis=(1, 3))
            writer.write(reduced.round().astype(np.uint8), subfiletype=int(level > 0), **options)
    return path


def tiles_of(path: Path, tile_px: int = 128, row: dict[str, Any] | None = None, **source: Any) -> list[Tile]:
    given_row = SlideRow(str(path), "case", **(row or {}))
    settings = SlideSource(paths=(str(path),), **{"mpp": 0.5, **source})
    with open_slide(str(path), STORAGE) as slide:
        return list(iter_tiles(slide, given_row, settings, tile_px))


def pixels(tile: Tile) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(tile.image))).astype(np.float64)


def test_tiles_at_the_slides_own_resolution(tmp_path: Path) -> None:
    tiles = tiles_of(write_slide(tmp_path / "one.tiff"))
    assert [(tile.x, tile.y) for tile in tiles] == [
        (x, y) for y in range(0, SIDE, 128) for x in range(0, SIDE // 2, 128)
    ]
    tile = tiles[5]
    assert (tile.tile_id, tile.slide, tile.case, tile.mask) == ("one_128_128", "one", "case", None)
    assert tile.mpp == pytest.approx(0.5)
    expected = picture()[tile.y : tile.y + 128, tile.x : tile.x + 128]
    assert np.abs(pixels(tile) - expected).mean() < 2  # JPEG


@pytest.mark.parametrize("mpp", [1.0, 1.25, 2.0, 3.1])
def test_coarser_tiles_show_the_same_place(tmp_path: Path, mpp: float) -> None:
    tiles = tiles_of(write_slide(tmp_path / "one.tiff"), tile_px=64, mpp=mpp)
    side = 64 * mpp / 0.5
    assert len(tiles) >= int(SIDE / 2 / side) * int(SIDE / side)
    for tile in tiles:
        assert pixels(tile).shape == (64, 64, 3)
        assert tile.mpp == pytest.approx(mpp)
        if tile.x + side >= SIDE / 2 - 8:
            continue  # ringing at the edge to the glass
        centers = (np.arange(64) + 0.5) * side / 64 - 0.5
        rows, columns = np.round(tile.y + centers).astype(int), np.round(tile.x + centers).astype(int)
        assert np.abs(pixels(tile) - picture()[np.ix_(rows, columns)]).mean() < 4


def test_magnification_is_a_way_to_say_mpp(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "one.tiff")
    by_objective = tiles_of(path, mpp=None, magnification=10)
    assert [tile.tile_id for tile in by_objective] == [tile.tile_id for tile in tiles_of(path, mpp=1.0)]


def test_one_level_gives_what_three_give(tmp_path: Path) -> None:
    one, three = (tiles_of(write_slide(tmp_path / f"{n}.tiff", levels=n), mpp=2.0, tile_px=64) for n in (1, 3))
    assert [(tile.x, tile.y) for tile in one] == [(tile.x, tile.y) for tile in three]
    inside = [(a, b) for a, b in zip(one, three, strict=True) if a.x + 256 < SIDE / 2]
    assert inside
    assert all(np.abs(pixels(a) - pixels(b)).mean() < 2 for a, b in inside)


def test_an_unrecorded_mpp_is_asked_for(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "bare.tiff", mpp=None)
    with pytest.raises(InputError, match=r"bare\.tiff does not record .* set slides\.slide_mpp\.$"):
        tiles_of(path)
    assert tiles_of(path, slide_mpp=0.5)[0].mpp == 0.5
    assert tiles_of(path, row={"mpp": 0.25}, slide_mpp=0.5)[0].mpp == 0.5
    assert len(tiles_of(path, row={"mpp": 0.25})) < len(tiles_of(path, slide_mpp=0.5))


def test_72_dots_per_inch_are_no_resolution(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not record"):
        tiles_of(write_slide(tmp_path / "dpi.tiff", mpp=25_400 / 72))


def test_a_contradiction_is_refused(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "one.tiff", mpp=0.5)
    with pytest.raises(InputError, match=r"records 0\.5 um/px and the index declares 0\.25"):
        tiles_of(path, row={"mpp": 0.25})
    assert tiles_of(path, row={"mpp": 0.505})
    assert tiles_of(path, slide_mpp=0.25)[0].mpp == pytest.approx(0.5)  # only for slides that record none


def test_oblong_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0\.5 x 0\.6 um"):
        tiles_of(write_slide(tmp_path / "one.tiff", mpp=(0.5, 0.6)))
    assert tiles_of(write_slide(tmp_path / "two.tiff", mpp=(0.5, 0.505)))


def test_tiles_finer_than_the_slide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 0\.5 um/px and tiles of 0\.25 were asked for"):
        tiles_of(write_slide(tmp_path / "one.tiff"), mpp=0.25)
    assert scale_factor(0.496, 0.5, "s") == 1.0
    assert scale_factor(1.0, 0.5, "s") == 2.0


def test_a_region_holds_its_tiles_only(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "one.tiff")
    top = tiles_of(path, tile_px=100, row={"region": (0.0, 0.0, 1.0, 0.5)}, min_tissue=0.0)
    bottom = tiles_of(path, tile_px=100, row={"region": (0.0, 0.5, 1.0, 1.0)}, min_tissue=0.0)
    assert max(tile.y for tile in top) + 100 <= SIDE / 2 <= min(tile.y for tile in bottom)
    assert len({tile.tile_id for tile in top + bottom}) == len(top) + len(bottom) == 100


def test_tissue_fractions_against_slices() -> None:
    mask = np.random.default_rng(0).random((30, 40)) < 0.4
    corners = [(x, y) for y in range(0, 280, 40) for x in range(0, 360, 40)]
    fractions = tissue_fractions(mask, 10.0, corners, 40.0)
    expected = [mask[y // 10 : y // 10 + 4, x // 10 : x // 10 + 4].mean() for x, y in corners]
    np.testing.assert_allclose(fractions, expected, atol=1e-12)
    assert tissue_fractions(mask, 10.0, [], 40.0).shape == (0,)


def test_overview_and_levels(tmp_path: Path) -> None:
    with open_slide(str(write_slide(tmp_path / "one.tiff")), STORAGE) as slide:
        assert [find_level(slide, step) for step in (0.5, 1, 1.99, 2, 3, 4, 50)] == [0, 0, 1, 1, 1, 2, 2]
        small = read_overview(slide, 16.0)
        assert small.shape == (64, 64, 3)
        assert np.abs(small[:, :31].astype(float) - picture(64)[:, :31]).mean() < 8
        assert read_overview(slide, 7.3).shape == (141, 141, 3)
        beyond = read_square(slide, SIDE - 32, 0, 64.0, 64)
        assert (beyond[:, 33:] == 255).all()


def test_slides_that_cannot_be_read(tmp_path: Path) -> None:
    text = tmp_path / "text.svs"
    text.write_text("no slide")
    whole = write_slide(tmp_path / "whole.tiff").read_bytes()
    torn = tmp_path / "torn.tiff"
    torn.write_bytes(whole[: len(whole) // 2])
    for path in (text, torn, tmp_path / "none.svs"):
        with pytest.raises(Unreadable, match=path.name):
            tiles_of(path)


def rows_of(folder: Path, text: str) -> list[SlideRow]:
    index = folder / "slides.csv"
    index.write_text(text)
    return slide_rows(SlideSource(index=str(index), mpp=0.5), STORAGE)


def test_a_column_of_cases_under_another_name_is_not_passed_over(tmp_path: Path) -> None:
    for name in ("Case", "MPP", "Left"):
        with pytest.raises(InputError, match=f"no column '{name.casefold()}' but one '{name}'"):
            rows_of(tmp_path, f"slide,{name}\na.svs,1\n")
    (tmp_path / "p.csv").write_text("slide,Patient_ID,note\na.svs,1,x\nb.svs,1,x\n")
    notes = read_slide_index(SlideSource(index=str(tmp_path / "p.csv"), mpp=0.5), STORAGE).notes
    assert notes[0] == "columns of the index that are not used: note."
    assert "no column 'case'; rename 'Patient_ID'" in notes[1]
    (tmp_path / "p.csv").write_text("slide,case,patient\na.svs,1,x\n")
    assert len(read_slide_index(SlideSource(index=str(tmp_path / "p.csv"), mpp=0.5), STORAGE).notes) == 1


def test_index_of_slides(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path, "slide,case,mpp,left,top,right,bottom\na.svs,007,0.25,,,,\nb.svs,,,0,0,1,0.5\nb.svs,x,,0,0.5,1,1\n"
    )
    assert rows == [
        SlideRow(str(tmp_path / "a.svs"), "007", 0.25),
        SlideRow(str(tmp_path / "b.svs"), "b", None, (0.0, 0.0, 1.0, 0.5)),
        SlideRow(str(tmp_path / "b.svs"), "x", None, (0.0, 0.5, 1.0, 1.0)),
    ]
    assert rows[0].whole
    assert not rows[1].whole


def test_one_file_has_one_name_wherever_it_lies(tmp_path: Path) -> None:
    paths = ("/a/./b.svs", "/a/c/../d.svs", "s3://b/x/./e.svs", "s3://b/x/../f.svs", "s3://b/x//g+1 ä.svs")
    rows = rows_of(tmp_path, "slide\n" + "\n".join(paths))
    assert [row.uri for row in rows] == [
        "/a/b.svs",
        "/a/d.svs",
        "s3://b/x/e.svs",
        "s3://b/f.svs",
        "s3://b/x//g+1 ä.svs",
    ]
    with pytest.raises(InputError, match=r"s3://b/a\.svs is named twice"):
        rows_of(tmp_path, "slide\ns3://b/a.svs\ns3://b/./a.svs\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file\na.svs\n", "no column 'slide'; it has file"),
        ("slide\n", "no rows"),
        ("slide,mpp\na.svs,fine\n", "mpp of slide .* is 'fine'"),
        ("slide,mpp\na.svs,-1\n", "mpp of slide .* is -1"),
        ("slide,mpp\na.svs,0.5,0.5\n", "line 2 .* 3 values for 2 columns"),
        ("slide,case\n,x\n", "line 2 .* no value for 'slide'"),
        ("slide\na.svs\nb/a.svs\n", "both named 'a'"),
        ("slide\na.svs\na.svs\n", "overlap"),
        ("slide,left,top,right,bottom\na.svs,0,0,1,0.6\na.svs,0,0.5,1,1\n", "overlap"),
        ("slide,left,top,right,bottom\na.svs,0.5,0,0.5,1\n", "fractions with 0 <= left < right <= 1"),
        ("slide,left,top,right,bottom\na.svs,0,0,1,\n", "fractions with"),
        ("slide,left,top,right,bottom\na.svs,0,0,1,1/0\n", "bottom of slide .* is '1/0'"),
        ("slide,left,top,right,bottom\na.svs,0,0,1,nan\n", "bottom of slide .* is 'nan'"),
    ],
)
def test_refused_indices(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        rows_of(tmp_path, text)


@pytest.mark.skipif(not CMU.exists(), reason="the slide is not here")
def test_a_real_aperio_slide() -> None:
    tiles = tiles_of(CMU, tile_px=256)
    assert 35 <= len(tiles) <= 40
    assert {tile.mpp for tile in tiles} == {0.499}
    # Stained tissue is pinkish: green is the weakest channel of a tile's mean.
    assert all(mean[1] == min(mean) for mean in (pixels(tile).mean(axis=(0, 1)) for tile in tiles))
    with open_slide(str(CMU), STORAGE) as slide:
        assert resolve_mpp(slide, SlideRow(str(CMU), "c"), None) == pytest.approx(0.499)
