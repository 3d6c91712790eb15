"""The symmetries of the square: 8 of them, the same for a tile's image, mask and response."""

import numpy as np
import pytest

from histill.stream import geometry

pytestmark = pytest.mark.unit


def test_there_are_eight_distinct_symmetries() -> None:
    square = np.arange(9).reshape(3, 3)
    turned = {geometry.apply(square, symmetry, axes=(0, 1)).tobytes() for symmetry in range(8)}
    assert len(turned) == 8
    assert np.array_equal(geometry.apply(square, 0, axes=(0, 1)), square)


@pytest.mark.parametrize("symmetry", range(8))
def test_image_mask_and_response_stay_aligned(symmetry: int) -> None:
    plane = np.random.default_rng(0).integers(0, 255, (5, 5)).astype(np.uint8)
    mask = geometry.apply(plane, symmetry, axes=(0, 1))
    image = geometry.apply(np.stack([plane] * 3, axis=-1), symmetry, axes=(0, 1))
    response = geometry.apply(np.stack([plane, plane]).astype(np.float32), symmetry, axes=(1, 2))
    for channel in (*image.transpose(2, 0, 1), *response):
        assert np.array_equal(channel, mask)


def test_a_draw_depends_on_seed_epoch_and_tile_alone() -> None:
    draws = [geometry.draw(1, 2, tile) for tile in range(400)]
    assert draws == [geometry.draw(1, 2, tile) for tile in range(400)]
    assert draws != [geometry.draw(1, 3, tile) for tile in range(400)]
    assert draws != [geometry.draw(2, 2, tile) for tile in range(400)]
    counts = np.bincount(draws, minlength=8)
    assert counts.shape == (8,)
    assert counts.min() > 25  # 50 each on average
