"""Non-maximum suppression of star-convex polygons whose overlaps are known."""

import numpy as np
import pytest

from histill.objects.stardist import separate_stardist

pytestmark = pytest.mark.unit

RAYS = 32


def propose(*discs: tuple[int, int, float, float], side: int = 96, stride: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and rays that propose discs (x, y, radius, probability), each at the pixel of its center."""
    probabilities = np.zeros((side // stride, side // stride), np.float32)
    rays = np.zeros((RAYS, side // stride, side // stride), np.float32)
    for x, y, radius, probability in discs:
        probabilities[y // stride, x // stride] = probability
        rays[:, y // stride, x // stride] = radius
    return probabilities, rays


def separate(*discs: tuple[int, int, float, float], threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    return separate_stardist(*propose(*discs), stride=2, side=96, threshold=threshold)


def test_a_polygon_covers_its_disc() -> None:
    labels, found = separate((40, 30, 12, 0.8))
    rows, columns = np.indices((96, 96))
    disc = (columns - 40) ** 2 + (rows - 30) ** 2 <= 12**2
    assert (labels.dtype, found.tolist()) == (np.int32, [pytest.approx(0.8)])
    assert ((labels == 1) & disc).sum() / ((labels == 1) | disc).sum() > 0.95


@pytest.mark.parametrize(("apart", "count"), [(4, 1), (12, 1), (18, 2), (30, 2)])
def test_of_two_that_overlap_by_more_than_three_tenths_the_more_probable_stays(apart: int, count: int) -> None:
    """Two discs of radius r at a distance d share 2 r^2 acos(d / 2r) - d/2 sqrt(4 r^2 - d^2)."""
    radius = 12
    half = min(apart / 2 / radius, 1)
    shared = 2 * radius**2 * np.arccos(half) - apart / 2 * np.sqrt(max(4 * radius**2 - apart**2, 0))
    assert (shared / (np.pi * radius**2) > 0.3) == (count == 1)
    labels, found = separate((30, 40, radius, 0.7), (30 + apart, 40, radius, 0.9))
    assert found.tolist() == pytest.approx([0.9, 0.7][:count])
    assert labels[40, 30 + apart] == 1  # the more probable one has its center


def test_a_small_polygon_inside_a_large_one_is_suppressed() -> None:
    """The share is of the smaller one: its IoU with the large one is small."""
    _, found = separate((40, 40, 20, 0.9), (48, 40, 5, 0.8))
    assert len(found) == 1


def test_shared_pixels_are_those_of_the_more_probable_one() -> None:
    labels, _ = separate((30, 40, 12, 0.7), (50, 40, 12, 0.9))
    assert (labels[40, 38:43] == 1).all()  # 38 is within both
    assert labels[40, 36] == 2


def test_improbable_polygons_and_those_beyond_the_image_are_left_out() -> None:
    assert len(separate((40, 40, 10, 0.4))[1]) == 0
    assert len(separate((40, 40, 10, 0.6), threshold=0.7)[1]) == 0
    labels, found = separate((0, 0, 10, 0.9))
    assert len(found) == 1
    assert labels[0, 0] == 1


def test_rays_point_from_the_x_axis_towards_the_y_axis() -> None:
    probabilities, rays = propose((48, 48, 6, 0.9))
    rays[RAYS // 4, 24, 24] = 30  # straight down
    labels, _ = separate_stardist(probabilities, rays, stride=2, side=96, threshold=0.5)
    assert labels[48 + 25, 48] == 1
    assert labels[48, 48 + 25] == labels[48 - 25, 48] == labels[48, 48 - 25] == 0
