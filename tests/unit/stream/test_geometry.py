"""The symmetries of the square: 8 of them, the same for a tile's image, mask and response."""

import numpy as np
import pytest

from histill.stream.geometry import apply_symmetry, apply_symmetry_to_planes

pytestmark = pytest.mark.unit

SYMMETRIES = range(8)


def reference(plane: np.ndarray, symmetry: int) -> np.ndarray:
    """Counter-clockwise quarter turns, then a mirror from left to right."""
    plane = np.rot90(plane, symmetry % 4)
    return plane[:, ::-1] if symmetry >= 4 else plane


def test_there_are_eight_distinct_symmetries() -> None:
    square = np.arange(9, dtype=np.uint8).reshape(3, 3)
    assert len({apply_symmetry(square, symmetry).tobytes() for symmetry in SYMMETRIES}) == 8
    assert apply_symmetry(square, 0) is square


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_turning_is_rotation_then_a_mirror(symmetry: int) -> None:
    for shape in [(5, 5), (5, 5, 3)]:
        plane = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
        before = plane.copy()
        assert np.array_equal(apply_symmetry(plane, symmetry), reference(plane, symmetry))
        window = plane[1:4, 2:5]  # a crop, not contiguous
        assert np.array_equal(apply_symmetry(window, symmetry), reference(window, symmetry))
        assert np.array_equal(plane, before)


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_image_mask_and_response_stay_aligned(symmetry: int) -> None:
    plane = np.random.default_rng(0).integers(0, 255, (5, 5)).astype(np.uint8)
    mask = apply_symmetry(plane, symmetry)
    image = apply_symmetry(np.stack([plane] * 3, axis=-1), symmetry)
    response = apply_symmetry_to_planes(np.stack([plane, plane]), symmetry)
    for channel in (*image.transpose(2, 0, 1), *response):
        assert np.array_equal(channel, mask)
