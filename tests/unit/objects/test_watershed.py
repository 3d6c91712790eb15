"""Touching objects are parted where two discs meet, with a boundary class and without."""

import numpy as np
import pytest

from histill.objects.instances import label_mask
from histill.objects.watershed import _flatten_maxima, separate_objects

pytestmark = pytest.mark.unit

MPP = 0.5


def disc(shape: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.indices(shape)
    inside: np.ndarray = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return inside


def probabilities(*classes: np.ndarray) -> np.ndarray:
    """The background and the others, of which at most one is marked at each pixel; never quite sure."""
    marked = np.stack([~np.any(classes, axis=0), *classes])
    return np.where(marked, 0.9, 0.1 / (len(marked) - 1)).astype(np.float32)


def test_two_discs_that_overlap_are_two_objects_parted_at_their_waist() -> None:
    one, other = disc((40, 60), 20, 20, 9), disc((40, 60), 34, 20, 9)
    found = separate_objects(probabilities(one | other), boundary=False, mpp=MPP)
    assert found.classes.tolist() == [1, 1]
    np.testing.assert_array_equal(found.labels > 0, one | other)
    first, second = found.labels[20, 20], found.labels[20, 34]
    assert {first, second} == {1, 2}
    columns = np.arange(60) * np.ones((40, 1))
    assert columns[found.labels == first].max() <= 27 <= columns[found.labels == second].min() + 1
    np.testing.assert_allclose(found.probabilities, 0.9, atol=1e-6)


def test_maxima_are_flattened_as_a_reconstruction_does() -> None:
    from scipy.ndimage import gaussian_filter
    from skimage.morphology import reconstruction

    noise = gaussian_filter(np.random.default_rng(0).normal(size=(90, 110)), 2)
    levels = np.clip(300 * noise + 60, 0, 255).astype(np.uint8)
    for relief in (4, 12, 40):
        lowered = np.maximum(levels.astype(int) - relief, 0)
        cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
        expected = reconstruction(lowered, levels.astype(int), method="dilation", footprint=cross)
        np.testing.assert_array_equal(_flatten_maxima(levels, relief), expected)
        assert (expected != lowered).any()


def test_a_disc_with_a_ragged_edge_is_one_object() -> None:
    shape = disc((64, 64), 31, 31, 16)
    shape[::3] &= disc((64, 64), 31, 31, 14.5)[::3]
    found = separate_objects(probabilities(shape), boundary=False, mpp=MPP)
    assert found.classes.tolist() == [1]
    np.testing.assert_array_equal(found.labels > 0, shape)


def test_insides_grow_into_their_boundary_to_meet_halfway() -> None:
    """Two squares that touch along a line, each with a boundary of two pixels: distance alone would see a rectangle."""
    inside, edge = np.zeros((2, 30, 50), bool)
    edge[5:25, 5:25] = edge[5:25, 25:45] = True
    for left in (7, 27):
        inside[7:23, left : left + 16] = True
    edge &= ~inside
    found = separate_objects(probabilities(inside, edge), boundary=True, mpp=MPP)
    assert found.classes.tolist() == [1, 1]
    np.testing.assert_array_equal(found.labels > 0, inside | edge)
    assert found.areas.tolist() == [400, 400]
    np.testing.assert_allclose(found.probabilities, (0.9 + 0.05), atol=1e-6)
    merged = separate_objects(probabilities(inside | edge), boundary=False, mpp=MPP)
    assert len(merged.classes) == 1


def test_what_has_no_inside_is_an_object_of_its_own_and_a_speck_of_inside_is_none() -> None:
    inside, edge = np.zeros((2, 20, 60), bool)
    edge[5:15, 5:15] = True  # nothing but boundary
    edge[3:17, 30:50] = True
    inside[5:15, 32:48] = True
    inside[3, 48] = True
    edge &= ~inside
    found = separate_objects(probabilities(inside, edge), boundary=True, mpp=MPP)
    assert sorted(found.areas.tolist()) == [100, 280]


def test_an_object_has_the_class_that_is_most_probable_over_all_of_it() -> None:
    shape = disc((40, 40), 20, 20, 10)
    left = shape & (np.arange(40) < 16)
    found = separate_objects(probabilities(left, shape & ~left), boundary=False, mpp=MPP)
    assert found.classes.tolist() == [2]
    share = left.sum() / shape.sum()
    assert found.probabilities[0] == pytest.approx(0.9 * (1 - share) + 0.05 * share, abs=1e-6)


def test_nothing_is_found_on_glass() -> None:
    found = separate_objects(probabilities(np.zeros((32, 32), bool)), boundary=False, mpp=MPP)
    assert (len(found.classes), found.labels.max()) == (0, 0)


def test_a_mask_has_an_object_for_each_connected_region_of_a_class() -> None:
    mask = np.array([[1, 1, 0, 2], [0, 1, 2, 2], [1, 0, 0, -1]])
    found = label_mask(mask)
    assert found.labels.tolist() == [[1, 1, 0, 2], [0, 1, 2, 2], [3, 0, 0, 0]]
    assert found.classes.tolist() == [1, 2, 1]
    assert found.keep(np.array([False, True, True])).labels.tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [2, 0, 0, 0]]
