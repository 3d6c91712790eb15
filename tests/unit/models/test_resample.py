"""Resampling of tiles and logits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from histill.models.resample import resize_logits, resize_tiles

pytestmark = pytest.mark.unit


def area_average(image: np.ndarray, side: int) -> np.ndarray:
    """Mean over blocks, float64 [B, C, side, side], where `side` divides the image's side."""
    batch, channels, height, _ = image.shape
    block = height // side
    return image.astype(np.float64).reshape(batch, channels, side, block, side, block).mean((3, 5))


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_shrinking_averages_areas(side: int) -> None:
    tiles = torch.randint(256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    shrunk = resize_tiles(tiles, side)
    assert shrunk.dtype == torch.float32
    assert np.allclose(shrunk.numpy(), area_average(tiles.numpy(), side), atol=1e-4)


def test_a_tile_of_the_size_keeps_its_values() -> None:
    tiles = torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(resize_tiles(tiles, 8), tiles.float())


def test_growing_stays_within_the_values() -> None:
    tiles = torch.randint(256, (1, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    grown = resize_tiles(tiles, 8)
    assert grown.shape == (1, 3, 8, 8)
    assert grown.min() >= tiles.min()
    assert grown.max() <= tiles.max()


def test_shrunk_logits_give_the_average_of_the_probabilities() -> None:
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    shrunk = resize_logits(logits, 2).double().softmax(1)
    expected = area_average(logits.double().softmax(1).numpy(), 2)
    assert np.allclose(shrunk.numpy(), expected, atol=1e-5)
    assert np.allclose(shrunk.sum(1).numpy(), 1)


def test_one_confident_pixel_does_not_outvote_its_neighbors() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1] = torch.tensor([[100.0, -1.0], [-1.0, -1.0]])
    assert logits.mean((2, 3)).argmax() == 1
    assert resize_logits(logits, 1).argmax() == 0


def test_certain_logits_stay_finite() -> None:
    logits = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    shrunk = resize_logits(logits, 2)
    assert shrunk.isfinite().all()
    assert shrunk.softmax(1)[0, 0].min() > 0.99999


def test_grown_and_unchanged_logits() -> None:
    logits = torch.randn(1, 2, 4, 4)
    assert resize_logits(logits, 4) is logits
    expected = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize_logits(logits, 8), expected)
