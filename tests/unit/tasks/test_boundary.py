"""The boundary class: generated from masks, and merged back into the class it bounds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from histill.outputs import OutputSpec
from histill.tasks.boundary import add_boundary

pytestmark = pytest.mark.unit

TWO = ("background", "nucleus")
THREE = ("background", "nucleus", "boundary")
FOUR = ("background", "gland", "vessel", "boundary")


def masks_of(seed: int, classes: int, coarse: int) -> np.ndarray:
    """Three masks of rectangles, int64 [3, 17, 17]."""
    random = np.random.default_rng(seed)
    cells = random.integers(0, classes, (3, -(-17 // coarse), -(-17 // coarse)))
    return cells.repeat(coarse, 1).repeat(coarse, 2)[:, :17, :17]


def eroded(mask: np.ndarray, width: int, boundary: int) -> np.ndarray:
    """By definition, class by class: the pixels that erosion removes are the boundary."""
    square = np.ones((2 * width + 1, 2 * width + 1))
    result = mask.copy()
    for index in np.unique(mask[mask > 0]):
        region = mask == index
        inside = ndimage.binary_erosion(region, square, border_value=1)
        result[region & ~inside] = boundary
    return result


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 9), st.integers(1, 4))
def test_the_boundary_is_what_erosion_takes_from_each_class(seed: int, classes: int, coarse: int, width: int) -> None:
    masks = masks_of(seed, classes, coarse)
    found = add_boundary(torch.from_numpy(masks), width, classes)
    assert found.dtype == torch.int64
    expected = np.stack([eroded(mask, width, classes) for mask in masks])
    np.testing.assert_array_equal(found.numpy(), expected)


def test_the_boundary_is_as_wide_as_is_said_and_the_tiles_edge_is_none() -> None:
    mask = torch.zeros(1, 9, 9, dtype=torch.int64)
    mask[0, :, 3:] = 1
    found = add_boundary(mask, 2, 2)[0]
    assert (found == torch.tensor([0, 0, 0, 2, 2, 1, 1, 1, 1])).all()


def test_nuclei_that_touch_are_kept_apart() -> None:
    rows, columns = np.mgrid[:40, :60]
    discs = [(rows - 20) ** 2 + (columns - center) ** 2 < 90 for center in (20, 39)]
    mask = (discs[0] | discs[1]).astype(np.int64)
    assert ndimage.label(mask)[1] == 1
    assert ndimage.label(add_boundary(torch.from_numpy(mask)[None], 3, 2)[0].numpy() == 1)[1] == 2


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (TWO, TWO),
        (THREE, TWO),
        (FOUR, FOUR[:-1]),
        (("background", "boundary"), ("background", "boundary")),  # it bounds nothing
        (("background", "boundary", "nucleus"), ("background", "boundary", "nucleus")),
    ],
)
def test_a_last_boundary_is_not_counted(classes: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert OutputSpec("segmentation", classes).scored == expected


@given(st.integers(0, 10**6), st.sampled_from([TWO, THREE, FOUR]))
def test_a_boundarys_probability_is_that_of_the_most_probable_foreground(seed: int, classes: tuple[str, ...]) -> None:
    logits = np.random.default_rng(seed).normal(size=(2, len(classes), 5, 5))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.empty((2, 5, 5), np.int64)
    for tile, row, column in np.ndindex(expected.shape):
        found = list(probabilities[tile, :, row, column])
        if classes[-1] == "boundary":
            boundary = found.pop()
            found[found.index(max(found[1:]))] += boundary
        expected[tile, row, column] = found.index(max(found))
    found = OutputSpec("segmentation", classes).decide(torch.from_numpy(logits))
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), expected)


def test_nucleus_and_boundary_together_outweigh_the_background() -> None:
    logits = torch.tensor([0.4, 0.3, 0.3]).log()[None, :, None, None]
    outputs = OutputSpec("segmentation", THREE)
    assert outputs.decide(logits).item() == 1
    assert outputs.decide(logits - torch.tensor([-1.0, 0, 0])[None, :, None, None]).item() == 0
