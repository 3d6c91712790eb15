"""Where tiles lie in pictures and GeoJSON of a slide: as they were cut, whatever is left out or rounded."""

import io
import json
import math
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histill.predict.geojson import heatmap_geojson
from histill.predict.heatmap import heatmap_png
from histill.predict.slide_map import MOST_PIXELS, USUAL_SIDE, SlideMap

pytestmark = pytest.mark.unit

CLASSES = ("stroma", "tumour")


def slide_map(x: Any, y: Any, values: Any = None, **keys: Any) -> SlideMap:
    """Tiles at (x, y), whose probabilities of a tumour are `values`."""
    tumour = np.linspace(0, 1, len(x)) if values is None else np.array(values, float)
    said = {"classes": CLASSES, "names": tuple(CLASSES[int(value > 0.5)] for value in tumour)}
    probabilities = np.stack([1 - tumour, tumour], axis=1).astype(np.float32)
    return SlideMap(**{"slide": "s", "x": np.array(x), "y": np.array(y), "probabilities": probabilities} | said | keys)


def cut(side: float, across: int, down: int, left: int = 0, top: int = 0) -> tuple[list[int], list[int]]:
    """Corners as slides are cut: a grid of squares whose corners are rounded down to whole pixels."""
    places = [(left + int(i * side), top + int(j * side)) for j in range(down) for i in range(across)]
    return [x for x, _ in places], [y for _, y in places]


@pytest.mark.parametrize("side", [512.0, 64 * 0.5 / 0.4541, 224.4, 256 * 1.013])
def test_squares_neither_overlap_nor_part_nor_drift(side: float) -> None:
    x, y = cut(side, 130, 3)
    squares = slide_map(x, y, side=side).squares().reshape(3, 130, 4)
    left, top, right, bottom = np.moveaxis(squares, -1, 0)
    np.testing.assert_array_equal(right[:, :-1], left[:, 1:])
    np.testing.assert_array_equal(bottom[:-1], top[1:])
    assert np.abs(left - side * np.arange(130)).max() < 1  # where the tile was read
    assert np.abs(right - left - side).max() < 1
    assert right[0, -1] == pytest.approx(x[-1] + side)  # without a neighbor a tile has its own side


def test_sparse_tiles_keep_their_size() -> None:
    x, y = cut(70.47, 130, 9)
    kept = [0, 5, 17, 600, 1100]
    found = slide_map([x[each] for each in kept], [y[each] for each in kept], side=70.47)
    widths = found.squares()[:, 2] - found.squares()[:, 0]
    np.testing.assert_allclose(widths, 70.47)
    grid = found.grid(np.ones(5))
    assert grid.shape == (9, 81)  # columns 0 to 80: 1100 = 8 * 130 + 60, 600 = 4 * 130 + 80
    assert sorted(zip(*np.nonzero(~np.isnan(grid)), strict=True)) == [(0, 0), (0, 5), (0, 17), (4, 80), (8, 60)]


def test_one_tile_alone() -> None:
    found = slide_map([7000], [350], [0.75], side=140.9)
    np.testing.assert_allclose(found.squares(), [[7000, 350, 7140.9, 490.9]])
    np.testing.assert_allclose(found.grid(found.probabilities[:, 1]), [[0.75]])
    assert Image.open(io.BytesIO(heatmap_png(found))).format == "PNG"


def test_regions_on_other_grids_are_bounded_pictures() -> None:
    """Two regions whose grids lie apart by fractions of a tile, and a tile 90,000 px away."""
    one, other = cut(512, 4, 2), cut(512, 3, 3, left=4000 + 181, top=40_000 + 7)
    x, y = [*one[0], *other[0], 90_000], [*one[1], *other[1], 80_003]
    found = slide_map(x, y, side=512.0)
    np.testing.assert_array_equal(np.diff(found.squares()[:, ::2]).ravel(), 512)
    image, (left, top, pixel) = found.image(np.arange(len(x), dtype=float))
    assert max(image.shape) <= MOST_PIXELS
    for number, (across, down) in enumerate(zip(x, y, strict=True)):  # the middle of each tile shows that tile
        assert image[int((down + 256 - top) / pixel), int((across + 256 - left) / pixel)] == number
    assert np.isnan(image[int((30_000 - top) / pixel), int((1000 - left) / pixel)])


def test_a_huge_slide_is_drawn_in_means_of_tiles() -> None:
    x = [0, 64, 64 * 999_999]
    image, (_, _, pixel) = slide_map(x, [0, 0, 0], side=64.0).image(np.array([0.2, 0.4, 0.9]))
    assert image.shape[1] <= MOST_PIXELS
    assert pixel == pytest.approx(64e6 / MOST_PIXELS)
    np.testing.assert_allclose(image[~np.isnan(image)], [0.3, 0.9])


@pytest.mark.parametrize("stride", [128.0, 64 * 0.5 / 0.4541])
def test_overlapping_tiles_are_a_pixel_each(stride: float) -> None:
    x, y = cut(stride, 40, 2)
    found = slide_map(x, y, side=256.0)
    assert found.pitch == pytest.approx(stride, rel=1e-3)
    image, (left, _, pixel) = found.image(np.arange(80.0))
    np.testing.assert_array_equal(image, np.arange(80.0).reshape(2, 40))
    assert left + pixel / 2 == pytest.approx(128)  # the first tile's middle
    np.testing.assert_allclose(found.squares()[:, 2] - x, 256)


@settings(max_examples=40)
@given(
    side=st.floats(33, 700),
    across=st.integers(1, 60),
    down=st.integers(1, 20),
    left=st.integers(0, 9),
    keep=st.data(),
)
def test_each_tile_of_a_grid_has_its_own_pixel(
    side: float, across: int, down: int, left: int, keep: st.DataObject
) -> None:
    x, y = (np.array(each) for each in cut(side, across, down, left=left))
    some = keep.draw(st.lists(st.integers(0, across * down - 1), min_size=1, max_size=50, unique=True))
    image = slide_map(x[some], y[some], side=side).grid(np.array(some, float))
    columns, rows = np.array(some) % across, np.array(some) // across
    expected = np.full((np.ptp(rows) + 1, np.ptp(columns) + 1), np.nan)
    expected[rows - rows.min(), columns - columns.min()] = some
    np.testing.assert_array_equal(image, expected)


def test_who_draws_tiles_without_a_record_has_the_usual_side() -> None:
    """256 px at 0.5 um/px of a scan of 0.25 um/px: what is sparse or on two grids does not change it."""
    assert USUAL_SIDE == 256 * 0.5 / 0.25
    assert slide_map([0, 5120], [0, 0]).side == slide_map([0, 512, 1024, 519, 90_000], [0, 0, 7, 40_000, 80_003]).side
    assert slide_map([0, 5120], [0, 0]).side == 512


def parsed(data: bytes) -> dict[str, Any]:
    """GeoJSON as RFC 7946 and QuPath ask for it, read without the product."""
    found: dict[str, Any] = json.loads(data)
    assert found["type"] == "FeatureCollection"
    for feature in found["features"]:
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert len(ring) == 5
        turns = sum(ax * by - bx * ay for (ax, ay), (bx, by) in pairwise(ring))
        assert turns > 0  # outer rings go round with the right hand, in the axes' own sense
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        assert all(isinstance(value, float) and math.isfinite(value) for value in properties["measurements"].values())
        if "classification" in properties:
            assert properties["classification"]["name"]
            assert all(isinstance(value, int) and 0 <= value <= 255 for value in properties["classification"]["color"])
    return found


def test_geojson_counts_from_the_corner_of_the_bounds() -> None:
    found = parsed(heatmap_geojson(slide_map([1000, 1064], [640, 640], side=64.0, origin=(1000, 640), mpp=0.5)))
    corners = [feature["geometry"]["coordinates"][0][0] for feature in found["features"]]
    assert corners == [[0, 0], [64, 0]]
    assert found["slide"]["bounds"] == {"x": 1000, "y": 640}
    assert "bounds" in found["slide"]["coordinates"]
    assert (found["slide"]["tile_side"], found["slide"]["microns_per_pixel"]) == (64, 0.5)


def test_a_picture_has_the_axes_of_the_geojson() -> None:
    found = slide_map([1000, 1064], [640, 640], side=64.0, origin=(1000, 640))
    assert found.image(np.ones(2))[1] == (0, 0, 64)


def test_classes_and_probabilities_of_a_classifier() -> None:
    found = parsed(heatmap_geojson(slide_map([0, 64], [0, 0], [0.2, 0.8], side=64.0)))
    first, second = (feature["properties"] for feature in found["features"])
    assert (first["classification"]["name"], second["classification"]["name"]) == ("stroma", "tumour")
    assert first["classification"]["color"] != second["classification"]["color"]
    assert second["measurements"] == pytest.approx({"stroma": 0.2, "tumour": 0.8}, abs=1e-4)


def test_several_classes_of_a_tile_and_none() -> None:
    classes = ("a", "b: c", "d")
    found = SlideMap(
        "s", classes, np.array([0, 64, 128]), np.zeros(3, int), np.full((3, 3), 0.5, np.float32),
        ("a|d", "", "b: c"), side=64.0,
    )  # fmt: skip
    both, none, one = (feature["properties"] for feature in parsed(heatmap_geojson(found))["features"])
    assert both["classification"]["name"] == "a: d"  # what QuPath makes of two classes
    assert "classification" not in none
    assert one["classification"]["name"] == "b: c"
    alone = parsed(heatmap_geojson(SlideMap("s", classes, *[np.zeros(1)] * 2, np.ones((1, 3)), ("a",), side=64.0)))
    assert both["classification"]["color"] != alone["features"][0]["properties"]["classification"]["color"]


def segmented(shares: list[float]) -> SlideMap:
    values = np.array([[1 - share, share] for share in shares], np.float32)
    names = tuple("nucleus" if share >= 0.01 else "background" for share in shares)
    x = 64 * np.arange(len(shares))
    return SlideMap("s", ("background", "nucleus"), x, 0 * x, values, names, side=64.0, segmenter=True)


def test_a_segmenters_tiles_are_told_apart_by_their_share() -> None:
    found = parsed(heatmap_geojson(segmented([0.0, 0.02, 0.12, 0.25, 0.8])))
    classes = [feature["properties"]["classification"] for feature in found["features"]]
    names = [each["name"] for each in classes]
    assert names == ["background", "nucleus: 1-5 %", "nucleus: 10-20 %", "nucleus: 20-30 %", "nucleus: 50-100 %"]
    assert len({tuple(each["color"]) for each in classes}) == 5
    assert found["features"][3]["properties"]["measurements"]["nucleus"] == pytest.approx(0.25, abs=1e-4)


def test_a_segmenters_picture_shows_small_shares() -> None:
    """Shares of 2 and 8 % are far apart in the picture, whose scale ends at the highest."""
    shown = np.array(Image.open(io.BytesIO(heatmap_png(segmented([0.02, 0.08])))).convert("RGB"), int)
    colors, counts = np.unique(shown.reshape(-1, 3), axis=0, return_counts=True)
    two = [color for color, _ in sorted(zip(colors.tolist(), counts, strict=True), key=lambda each: -each[1])][1:3]
    assert max(abs(a - b) for a, b in zip(*two, strict=True)) > 100


@pytest.mark.parametrize("name", ["患者甲", "a$x_^$b", "a<b>&", "-" * 200])
def test_any_name_can_be_drawn(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = heatmap_png(slide_map([0, 64], [0, 0], side=64.0, slide=name))
    width, height = Image.open(io.BytesIO(data)).size
    assert max(width, height) < 2000


@pytest.mark.parametrize(("across", "down"), [(5000, 1), (1, 5000), (90, 60)])
def test_pictures_are_bounded(across: int, down: int) -> None:
    x, y = cut(64.0, across, down)
    assert max(Image.open(io.BytesIO(heatmap_png(slide_map(x, y, side=64.0)))).size) < 2000
