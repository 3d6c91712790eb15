"""HoVer-Net's post-processing on distances that are known."""

import numpy as np
import pytest

from histill.objects.hovernet import separate_hovernet

pytestmark = pytest.mark.unit


def ideal(discs: list[tuple[float, float, float]], side: int = 96) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probability of a nucleus and distances [2, H, W] of discs (x, y, radius); a later one is in front."""
    rows, columns = np.indices((side, side)).astype(np.float64)
    labels, distances = np.zeros((side, side), np.int32), np.zeros((2, side, side))
    for number, (x, y, radius) in enumerate(discs, start=1):
        inside = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
        labels[inside] = number
        distances[0][inside], distances[1][inside] = ((columns - x) / radius)[inside], ((rows - y) / radius)[inside]
    return labels, np.where(labels > 0, 0.9, 0.05), distances


def agreement(found: np.ndarray, true: np.ndarray) -> list[float]:
    """The highest IoU of each true object."""
    numbers = range(1, found.max() + 1)
    return [
        max(((found == n) & (true == t)).sum() / ((found == n) | (true == t)).sum() for n in numbers)
        for t in range(1, true.max() + 1)
    ]


def test_touching_nuclei_are_parted_where_the_distances_fall_back() -> None:
    true, nucleus, distances = ideal([(28, 30, 13), (52, 30, 13), (40, 52, 13), (75, 75, 12)])
    found = separate_hovernet(nucleus, distances)
    assert (found.dtype, found.max()) == (np.int32, 4)
    np.testing.assert_array_equal(found > 0, true > 0)
    assert min(agreement(found, true)) > 0.9


def test_without_the_distances_touching_nuclei_are_one() -> None:
    """That they are parted is due to the distances alone."""
    _, nucleus, distances = ideal([(28, 30, 13), (52, 30, 13)])
    assert separate_hovernet(nucleus, distances).max() == 2
    _, _, single = ideal([(40, 30, 26)])
    assert separate_hovernet(nucleus, single).max() == 1


def test_specks_and_glass_hold_no_nucleus() -> None:
    true, nucleus, distances = ideal([(30, 30, 12)])
    nucleus[60:63, 60:63] = 0.9
    found = separate_hovernet(nucleus, distances)
    np.testing.assert_array_equal(found, true)
    assert separate_hovernet(np.zeros((32, 32)), np.zeros((2, 32, 32))).max() == 0
