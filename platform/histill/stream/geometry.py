"""Flips and quarter turns, drawn once per tile and shared by its views, mask and response."""

import numpy as np

_ROTATIONS = {1: 2, 2: 1, 3: 0}  # quarter turns, counter-clockwise, to OpenCV's codes


def apply_symmetry(plane: np.ndarray, symmetry: int) -> np.ndarray:
    """One of the 8 symmetries of the square: `symmetry % 4` quarter turns, then a mirror if `symmetry >= 4`.

    `plane` is [H, W] or [H, W, C]; the result is a copy, or `plane` itself for symmetry 0.
    """
    import cv2

    if quarters := symmetry % 4:
        plane = cv2.rotate(plane, _ROTATIONS[quarters])
    return cv2.flip(plane, 1) if symmetry >= 4 else plane


def compose_symmetries(first: int, second: int) -> int:
    """The symmetry that is equivalent to `first` followed by `second`."""
    # A mirror applied first reverses the direction of the quarter turns after it.
    quarters = first - second if first >= 4 else first + second
    return quarters % 4 + 4 * ((first >= 4) != (second >= 4))


def apply_symmetry_to_planes(planes: np.ndarray, symmetry: int) -> np.ndarray:
    """Apply a symmetry to each of the planes [C, H, W]."""
    return np.stack([apply_symmetry(plane, symmetry) for plane in planes]) if symmetry else planes
