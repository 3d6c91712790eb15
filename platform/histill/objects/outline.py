"""Outline objects as polygons."""

import numpy as np


def outline_object(mask: np.ndarray) -> np.ndarray:
    """The outer contour of a region, float64 [V, 2] of x, y in pixels from the image's corner, not closed.

    It runs halfway between the centers of the pixels inside and outside (marching squares) and never touches itself.
    The region, bool [H, W], is connected by the pixels' sides; its holes are filled.
    """
    from scipy.ndimage import binary_fill_holes
    from skimage.measure import find_contours

    padded = np.pad(binary_fill_holes(mask), 1).astype(np.float32)
    (contour,) = find_contours(padded, 0.5)
    points = contour[:-1, ::-1] - 0.5  # from centers of padded pixels to corners of those of the mask
    return points[_turns(points)]


def measure_polygon(points: np.ndarray) -> float:
    """The area of a polygon, float [V, 2], by the shoelace formula."""
    x, y = (points - points.mean(0)).T  # near 0, so that nothing cancels
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _turns(points: np.ndarray) -> np.ndarray:
    """bool [V]: whether the outline changes its direction at a point."""
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns: np.ndarray = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return turns
