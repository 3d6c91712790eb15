"""Nuclei from the answers of StarDist (Schmidt et al., MICCAI 2018, arXiv 1806.03535): star-convex polygons.

Each pixel proposes a polygon by its distances to the border along rays at equal angles, with a probability. Greedy
non-maximum suppression keeps the most probable of those that overlap.
"""

from collections.abc import Iterator

import numpy as np

_OVERLAP = 0.3  # share of the smaller of two polygons above which the less probable one is suppressed


def separate_stardist(
    probabilities: np.ndarray, rays: np.ndarray, *, stride: int, side: int, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """The nuclei, int32 [side, side], numbered from 1 in descending order of their probabilities, float64 [N].

    A pixel that polygons share belongs to the most probable one.

    Args:
        probabilities: float [h, w], one pixel for each `stride` of the image.
        rays: float [R, h, w], distances in pixels of the image; ray k points at the angle 2 pi k / R, from the x axis
            towards the y axis.
        threshold: probability from which a polygon is considered.
    """
    labels, areas, kept = np.zeros((side, side), np.int32), [0], []
    for probability, rows, columns in _propose(probabilities, rays, stride, side, threshold):
        shared = np.bincount(labels[rows, columns], minlength=len(areas))
        smaller = np.minimum(areas, len(rows))
        if (shared[1:] > _OVERLAP * smaller[1:]).any():
            continue
        free = labels[rows, columns] == 0
        labels[rows[free], columns[free]] = len(areas)
        areas.append(len(rows))
        kept.append(probability)
    return labels, np.array(kept, np.float64)


def _propose(
    probabilities: np.ndarray, rays: np.ndarray, stride: int, side: int, threshold: float
) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """The probability of each polygon, and rows and columns of its pixels; the most probable first."""
    from skimage.draw import polygon

    angles = 2 * np.pi * np.arange(len(rays)) / len(rays)
    rows, columns = np.nonzero(probabilities > threshold)
    found = probabilities[rows, columns]
    for index in np.argsort(-found, kind="stable").tolist():
        row, column = rows[index], columns[index]
        lengths = np.maximum(rays[:, row, column], 1e-3)
        y, x = row * stride + lengths * np.sin(angles), column * stride + lengths * np.cos(angles)
        inside = polygon(y, x, (side, side))
        if len(inside[0]):
            yield float(found[index]), *inside
