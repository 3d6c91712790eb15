"""Outlines are simple polygons of the right area."""

import numpy as np
import pytest

from histill.objects.outline import measure_polygon, outline_object

pytestmark = pytest.mark.unit


def crossings(points: np.ndarray) -> int:
    """How many pairs of edges that are not neighbors touch or cross, by exact arithmetic on doubled coordinates."""
    corners = np.rint(2 * points).astype(np.int64)
    edges = list(zip(corners, np.roll(corners, -1, axis=0), strict=True))

    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> int:
        return int(np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])))

    def within(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> bool:
        return bool((np.minimum(a, b) <= c).all() and (c <= np.maximum(a, b)).all())

    found = 0
    for first, (a, b) in enumerate(edges):
        for second in range(first + 2, len(edges)):
            if first == 0 and second == len(edges) - 1:
                continue
            c, d = edges[second]
            turns = side(a, b, c), side(a, b, d), side(c, d, a), side(c, d, b)
            apart = turns[0] * turns[1] < 0 and turns[2] * turns[3] < 0
            touch = any(
                turn == 0 and within(*edge, point)
                for turn, edge, point in zip(turns, ((a, b), (a, b), (c, d), (c, d)), (c, d, a, b), strict=True)
            )
            found += apart or touch
    return found


def blob(seed: int, side: int = 24) -> np.ndarray:
    """A region that is connected by sides, with bays, arms, holes and pixels that touch by a corner."""
    from scipy.ndimage import gaussian_filter
    from skimage.measure import label

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 0.9)
    parts = label(noise > -0.05, connectivity=1)
    largest: np.ndarray = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return largest


@pytest.mark.parametrize("seed", range(8))
def test_an_outline_never_touches_itself(seed: int) -> None:
    region = blob(seed)
    assert region.sum() > 40
    outline = outline_object(region)
    assert crossings(outline) == 0
    assert outline.min() >= 0 and outline.max() <= 24  # noqa: PT018


def test_an_outline_encloses_the_centers_of_its_pixels_alone_and_fills_holes() -> None:
    from matplotlib.path import Path
    from scipy.ndimage import binary_fill_holes

    region = blob(3)
    outline = outline_object(region)
    rows, columns = np.indices(region.shape)
    centers = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
    inside = Path(outline).contains_points(centers).reshape(region.shape)
    np.testing.assert_array_equal(inside, binary_fill_holes(region))
    assert (binary_fill_holes(region) != region).any()


def test_the_area_of_a_disc_is_that_of_the_circle() -> None:
    rows, columns = np.indices((60, 60))
    region = (columns + 0.5 - 30) ** 2 + (rows + 0.5 - 30) ** 2 <= 20**2
    outline = outline_object(region)
    assert measure_polygon(outline) == pytest.approx(np.pi * 400, rel=0.01)
    np.testing.assert_allclose(outline.mean(0), 30, atol=0.1)
    assert len(outline) < 100  # no corner within a straight line


def test_a_single_pixel_is_a_diamond_around_its_center() -> None:
    region = np.zeros((3, 4), bool)
    region[1, 2] = True
    assert sorted(outline_object(region).tolist()) == [[2.0, 1.5], [2.5, 1.0], [2.5, 2.0], [3.0, 1.5]]


def test_a_polygon_far_from_the_origin_keeps_its_area() -> None:
    square = np.array([[0.0, 0], [3, 0], [3, 3], [0, 3]]) + 1e9
    assert measure_polygon(square) == 9
