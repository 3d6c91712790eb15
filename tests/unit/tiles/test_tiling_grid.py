"""The grid of a slide's tiles, against exact arithmetic."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histill.tiles.tiling import tile_grid

pytestmark = pytest.mark.unit


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.floats(32, 700),
    st.tuples(st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0.5, 1), st.floats(0.5, 1)),
)
def test_grids_stay_inside_and_apart(width: int, height: int, side: float, region: tuple[float, ...]) -> None:
    left, top, right, bottom = region
    corners = tile_grid((width, height), (left, top, right, bottom), side)
    assert len(set(corners)) == len(corners)
    for x, y in corners:
        assert math.ceil(left * width) <= x <= right * width - side + 1e-6
        assert math.ceil(top * height) <= y <= bottom * height - side + 1e-6
    for values in ({x for x, _ in corners}, {y for _, y in corners}):
        steps = np.diff(sorted(values))
        assert (steps >= math.floor(side)).all()


def exact_starts(extent: int, begin: Fraction, end: Fraction, side: Fraction) -> list[int]:
    """Where squares of `side` pixels begin in a part of an axis, by exact arithmetic."""
    first, last = math.ceil(begin * extent), math.floor(end * extent)
    return [first + math.floor(number * side) for number in range(math.floor((last - first) / side))]


def assert_exact(extent: tuple[int, int], region: Sequence[Fraction], side: Fraction, given: float) -> None:
    left, top, right, bottom = region
    columns = exact_starts(extent[0], left, right, side)
    rows = exact_starts(extent[1], top, bottom, side)
    found = tile_grid(extent, (float(left), float(top), float(right), float(bottom)), given)
    assert found == [(x, y) for y in rows for x in columns]


EXTENTS = st.tuples(st.integers(1, 200_000), st.integers(1, 3000))
RATIOS = st.builds(Fraction, st.integers(1, 40), st.integers(1, 12)).filter(lambda ratio: ratio >= 1)  # such as 4/3


@given(EXTENTS, RATIOS, st.sampled_from([224, 240, 256, 512, 1000]), st.data())
def test_regions_of_whole_pixels_lose_no_row_and_no_column(
    extent: tuple[int, int], ratio: Fraction, tile_px: int, data: st.DataObject
) -> None:
    """Corners at whole pixels, or at whole tiles, given as the nearest floats."""
    side = tile_px * ratio
    region = []
    for size in extent:
        edges = st.integers(0, size) | st.integers(0, int(size / side)).map(lambda n, side=side: math.floor(n * side))
        region.append(sorted(Fraction(data.draw(edges), size) for _ in range(2)))
    (left, right), (top, bottom) = region
    assert_exact(extent, (left, top, right, bottom), side, float(side))


def test_two_thousand_regions_of_whole_pixels_by_chance() -> None:
    """Small numbers, which hypothesis prefers, rarely round the wrong way; of these, one in twelve did."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        extent = int(rng.integers(1000, 100_000))
        begin, end = sorted(int(edge) for edge in rng.integers(0, extent + 1, 2))
        side = Fraction(end - begin, int(rng.integers(1, 40))) or Fraction(1)  # a whole number of them fits
        region = (Fraction(begin, extent), Fraction(0), Fraction(end, extent), Fraction(1))
        assert_exact((extent, math.ceil(side)), region, side, float(side))


@given(EXTENTS, st.integers(2, 12), st.integers(2, 12))
def test_thirds_and_tenths_lose_no_row_and_no_column(extent: tuple[int, int], parts: int, others: int) -> None:
    size = (extent[0] // parts * parts or parts, extent[1] // others * others or others)
    side = Fraction(size[0], parts * 4) if size[0] >= parts * 4 else Fraction(1)
    for across, down in ((0, 0), (parts - 1, others - 1)):
        region = (
            Fraction(across, parts),
            Fraction(down, others),
            Fraction(across + 1, parts),
            Fraction(down + 1, others),
        )
        assert_exact(size, region, side, float(side))


@given(st.integers(1, 300), st.integers(100, 4000), st.integers(1, 8))
def test_a_resolution_in_single_precision_costs_no_column(columns: int, thousandths: int, times: int) -> None:
    """A TIFF holds pixels per cm as a 32-bit float, so that a tile's side is off by up to 6e-8 of itself."""
    mpp = 10_000 / float(np.float32(10_000_000 / thousandths))
    side = 256 * (times * thousandths / 1000) / mpp
    corners = tile_grid((columns * 256 * times, 256 * times), (0.0, 0.0, 1.0, 1.0), side)
    assert corners == [(number * 256 * times, 0) for number in range(columns)]


def test_a_sum_of_tenths_is_three_tenths() -> None:
    assert tile_grid((1000, 100), (0.0, 0.0, 0.1 + 0.2, 1.0), 100.0) == [(0, 0), (100, 0), (200, 0)]
    assert tile_grid((100, 100), (0.07, 0.0, 1.0, 1.0), 93.0) == [(7, 0)]
    assert tile_grid((3072, 100), (1 / 3, 0.0, 2 / 3, 1.0), 100.0)[0] == (1024, 0)
    assert tile_grid((100, 100), (0.0, 0.0, 1.0, 1.0), 101.0) == []


@pytest.mark.parametrize(("extent", "side", "overlap"), [(1000, 100.0, 20.0), (1001, 70.5, 16.25), (300, 100.0, 50.0)])
def test_squares_that_overlap_share_that_much_and_stay_inside(extent: int, side: float, overlap: float) -> None:
    columns = [x for x, y in tile_grid((extent, 128), (0.0, 0.0, 1.0, 1.0), side, overlap) if y == 0]
    step = Fraction(side) - Fraction(overlap)
    assert columns == [math.floor(number * step) for number in range(math.floor((extent - side) / step) + 1)]
