"""Pixels that follow flows to known centers."""

import numpy as np
import pytest

from histill.objects.cellpose import separate_cellpose

pytestmark = pytest.mark.unit


def ideal(discs: list[tuple[float, float, float]], side: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Labels of discs (x, y, radius), and the unit vectors [2, H, W] of y and x to their centers."""
    rows, columns = np.indices((side, side)).astype(np.float64)
    labels, flows = np.zeros((side, side), np.int32), np.zeros((2, side, side))
    for number, (x, y, radius) in enumerate(discs, start=1):
        inside = ((columns - x) ** 2 + (rows - y) ** 2 <= radius**2) & (labels == 0)
        labels[inside] = number
        towards = np.stack([y - rows, x - columns])
        flows[:, inside] = (towards / np.maximum(np.hypot(*towards), 1))[:, inside]
    return labels, flows


def test_touching_objects_are_told_apart_by_where_their_pixels_arrive() -> None:
    true, flows = ideal([(20, 20, 10), (39, 20, 10), (30, 38, 10), (60, 60, 12)])
    found = separate_cellpose(true > 0, flows)
    assert (found.dtype, found.max()) == (np.int32, 4)
    for number in range(1, 5):
        (common,) = np.unique(found[true == number])
        assert (true[found == common] == number).all()


def test_foreground_whose_flows_lead_nowhere_is_of_no_object() -> None:
    true, flows = ideal([(20, 20, 10)])
    foreground = true > 0
    foreground[60:70, 60:70] = True  # stays where it is: a pixel at each place
    found = separate_cellpose(foreground, flows)
    np.testing.assert_array_equal(found, true)


def test_glass_has_no_objects() -> None:
    assert separate_cellpose(np.zeros((16, 16), bool), np.ones((2, 16, 16))).max() == 0
