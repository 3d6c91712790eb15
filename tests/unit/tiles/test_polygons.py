"""Polygons on a grid of pixels, against points in polygons and against areas that are known."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histill.tiles.polygons import UNKNOWN, PolygonError, PolygonList, Polygons, rasterize

pytestmark = pytest.mark.unit

Ring = list[tuple[float, float]]


def polygons(*shapes: tuple[str, list[Ring]]) -> Polygons:
    """Polygons whose kinds are numbers of their names, in order of first appearance."""
    found = PolygonList()
    for name, rings in shapes:
        found.add(name, rings)
    return found.finish()


def box(left: float, top: float, right: float, bottom: float) -> Ring:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def disc(x: float, y: float, radius: float, corners: int = 720) -> Ring:
    turns = [2 * math.pi * number / corners for number in range(corners)]
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]


def is_inside(x: float, y: float, rings: list[Ring]) -> bool:
    """Whether a ray from the point to the right crosses the rings an odd number of times."""
    crossed = 0
    for ring in rings:
        for (x0, y0), (x1, y1) in pairwise([*ring, ring[0]]):
            if (y0 <= y) != (y1 <= y):
                crossed += x < x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    return crossed % 2 == 1


coordinate = st.integers(-200, 700).map(lambda tenth: tenth / 10)
ring = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=9)


@given(shapes=st.lists(st.lists(ring, min_size=1, max_size=3), max_size=5), side=st.sampled_from([16.0, 23.7, 40.0]))
@settings(max_examples=60, deadline=None)
def test_a_pixel_has_the_last_polygon_that_its_center_lies_in(shapes: list[list[Ring]], side: float) -> None:
    px, x, y = 16, 7.0, 11.0
    drawn = rasterize(polygons(*((str(number), rings) for number, rings in enumerate(shapes))), x, y, side, px)
    for row, column in np.ndindex(px, px):
        center = x + (column + 0.5) * side / px + 0.0137, y + (row + 0.5) * side / px + 0.0071
        near = {
            max((number for number, rings in enumerate(shapes) if is_inside(*at, rings)), default=UNKNOWN)
            for at in [center, *((center[0] + dx, center[1] + dy) for dx in (-0.03, 0.003) for dy in (-0.02, 0.002))]
        }
        if len(near) == 1:  # not on an edge
            assert drawn[row, column] == near.pop()


@pytest.mark.parametrize("px", [64, 256])
def test_shares_of_area_against_formulas(px: int) -> None:
    side = 512.0
    shapes = polygons(
        ("ring", [disc(256, 256, 200), disc(256, 256, 120)]),
        ("box", [box(-50, -50, 100.5, 80.25)]),  # over the border, under nothing
        ("disc", [disc(256, 256, 60)]),  # in the hole
        ("box", [box(200, 200, 256, 312)]),  # over half of the disc
    )
    kinds, counts = np.unique(rasterize(shapes, 0, 0, side, px), return_counts=True)
    shares = dict(zip(kinds.tolist(), (counts / px**2).tolist(), strict=True))
    polygon = math.sin(2 * math.pi / 720) * 720 / 2  # area of the disc's polygon of radius 1
    overlap = polygon * 200**2 - polygon * 120**2
    corner = 100.5 * 80.25  # its nearest point to the center is farther than 200
    covered = sum(0.02 * min(56, math.sqrt(60**2 - across**2)) for across in np.arange(0.005, 56, 0.01))  # of the disc
    expected = {0: overlap, 1: corner + 56 * 112, 2: polygon * 60**2 - covered}
    for kind, area in expected.items():
        assert shares[kind] == pytest.approx(area / side**2, abs=0.3 / px)
    assert shares[UNKNOWN] == pytest.approx(1 - sum(expected.values()) / side**2, abs=0.5 / px)


def test_edges_on_the_grid_are_exact() -> None:
    drawn = rasterize(polygons(("a", [box(0, 0, 128, 64), box(64, 16, 96, 48)])), 0, 0, 128, 64)
    expected = np.full((64, 64), UNKNOWN)
    expected[:32] = 0
    expected[8:24, 32:48] = UNKNOWN
    np.testing.assert_array_equal(drawn, expected)


def test_polygons_with_a_common_edge_leave_no_pixel_and_share_none() -> None:
    """Triangles around a point, whose edges go in both directions."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        center = tuple(rng.uniform(20, 44, 2))
        border = [(-1.0, -1.0), (30.3, -1.0), (65.0, -1.0), (65.0, 65.0), (-1.0, 65.0)]
        around = list(pairwise([*border, border[0]]))
        single = [rasterize(polygons(("a", [[one, two, center]])), 0, 0, 64, 64) for one, two in around]
        assert (sum(each == 0 for each in single) == 1).all()


def test_positions_with_a_height_and_closed_rings() -> None:
    flat, high = PolygonList(), PolygonList()
    flat.add("a", [[(1, 1), (9, 1), (9, 9)]])
    high.add("a", [[(1, 1, 5), (9, 1, 5), (9, 9, 5), (1, 1, 5)]])
    drawn = [rasterize(each.finish(), 0, 0, 10, 10) for each in (flat, high)]
    np.testing.assert_array_equal(*drawn)
    assert (drawn[0] == 0).sum() == 36  # centers on the diagonal are outside


def test_polygons_near_a_rectangle_draw_it_as_all_do() -> None:
    rng = np.random.default_rng(1)
    shapes = polygons(*((str(number % 7), [disc(*rng.uniform(0, 1000, 2), 20, 12)]) for number in range(800)))
    near = shapes.within(300, 400, 428, 528)
    assert 5 < len(near) < 60
    np.testing.assert_array_equal(rasterize(near, 300, 400, 128, 64), rasterize(shapes, 300, 400, 128, 64))
    assert (rasterize(polygons(), 0, 0, 8, 8) == UNKNOWN).all()


def test_many_polygons_are_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    shapes = polygons(*((str(number), [disc(*rng.uniform(0, 64, 2), 20, 12)]) for number in range(50)))
    whole = rasterize(shapes, 0, 0, 64, 64)
    monkeypatch.setattr("histill.tiles.polygons._PIXELS_AT_ONCE", 200)
    np.testing.assert_array_equal(rasterize(shapes, 0, 0, 64, 64), whole)
    one_by_one = np.full((64, 64), UNKNOWN)
    for number in range(50):
        alone = rasterize(shapes.take(np.array([number])), 0, 0, 64, 64)
        one_by_one[alone != UNKNOWN] = number
    np.testing.assert_array_equal(whole, one_by_one)


@pytest.mark.parametrize(
    "rings", [[[(0, 0), (1, "a"), (2, 2)]], [[(0, 0), (1,), (2, 2)]], [[1, 2, 3]], [3], [[(0, 0), (1, None), (1, 1)]]]
)
def test_what_is_no_polygon_is_refused(rings: list) -> None:
    with pytest.raises(PolygonError, match="positions"):
        PolygonList().add("a", rings)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1e300])
def test_positions_off_every_slide_are_refused(wrong: float) -> None:
    found = PolygonList()
    found.add("a", [[(0, 0), (1, wrong), (2, 2)]])
    with pytest.raises(PolygonError, match="no pixels of a slide"):
        found.finish()
