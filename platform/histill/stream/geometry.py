"""Flips and quarter turns, drawn once for a tile and shared by its image, mask and response."""

import numpy as np


def draw(seed: int, epoch: int, tile: int) -> int:
    """One of the 8 symmetries of the square, 0..7, as a function of (seed, epoch, tile) alone."""
    return int(np.random.default_rng([seed, epoch, tile]).integers(8))


def apply(array: np.ndarray, symmetry: int, *, axes: tuple[int, int]) -> np.ndarray:
    """`array` turned by `symmetry % 4` quarter turns in the plane `axes`, then flipped if `symmetry >= 4`. A view."""
    turned = np.rot90(array, symmetry % 4, axes=axes)
    return np.flip(turned, axes[1]) if symmetry >= 4 else turned
