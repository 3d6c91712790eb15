"""Separate touching objects of segmented pixels by a watershed.

With a boundary class (Kumar et al., IEEE TMI 36(7):1550, 2017, doi 10.1109/TMI.2017.2677499) the objects' insides are
the markers and grow into their boundaries. Without one, the markers are the maxima of the distance from the background
that rise more than `_RELIEF_UM` above the pass to a higher one (h-maxima: Soille, "Morphological Image Analysis", 2003,
section 6.3.5), which parts two overlapping discs at their waist.
"""

import numpy as np

from histill.objects.instances import Instances, classify

_RELIEF_UM = 0.75
_LEVELS_PER_UM = 16  # of the distance, which is at most 255 levels: 16 um from the edge
_DILATIONS_AT_ONCE = 8
_LEAST_MARKER_UM2 = 1.0  # smaller insides are noise; their pixels go to a neighbor, if there is one


def separate_objects(probabilities: np.ndarray, *, boundary: bool, mpp: float) -> Instances:
    """The objects of an image, at most one for each pixel; every foreground pixel belongs to one.

    Foreground is what `OutputSpec.decide` decides. A boundary's probability counts for the class it bounds.

    Args:
        probabilities: float32 [K, H, W], the background first and, with `boundary`, the boundary last.
        mpp: microns per pixel.
    """
    classes = probabilities[1:-1] if boundary else probabilities[1:]
    edge = probabilities[-1] if boundary else np.zeros_like(probabilities[0])
    foreground = classes.max(0) + edge > probabilities[0]
    labels = np.zeros(foreground.shape, np.int32)
    if foreground.any():
        box = _bound(foreground)
        labels[box] = _separate(foreground[box], classes.max(0)[box], edge[box], boundary=boundary, mpp=mpp)
    return classify(labels, classes + edge)


def _bound(foreground: np.ndarray) -> tuple[slice, slice]:
    """The part of an image that holds all foreground, with a pixel around it where there is one."""
    rows, columns = (np.flatnonzero(foreground.any(axis)) for axis in (1, 0))
    return (slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2))


def _separate(
    foreground: np.ndarray, inside: np.ndarray, edge: np.ndarray, *, boundary: bool, mpp: float
) -> np.ndarray:
    """The foreground's objects, int32 [H, W], numbered from 1."""
    from scipy.ndimage import distance_transform_edt
    from skimage.segmentation import watershed

    if boundary:
        markers = _label_insides(foreground & (inside > edge), mpp)
        height = -inside
    else:
        distance = distance_transform_edt(foreground, sampling=mpp)
        markers = _label_maxima(distance, foreground)
        height = -distance
    labels: np.ndarray = watershed(height, _add_unmarked(markers, foreground), mask=foreground)
    return labels


def _label_insides(inside: np.ndarray, mpp: float) -> np.ndarray:
    """The connected insides that are large enough, numbered from 1."""
    from skimage.measure import label

    labels = label(inside, connectivity=1)
    enough = np.bincount(labels.ravel()) * mpp**2 >= _LEAST_MARKER_UM2
    enough[0] = False
    return np.where(enough, np.cumsum(enough), 0)[labels]


def _label_maxima(distance: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """The maxima of `distance`, in microns, that stand out by `_RELIEF_UM`, numbered from 1."""
    from skimage.measure import label
    from skimage.morphology import local_maxima

    levels = np.minimum(np.rint(distance * _LEVELS_PER_UM), 255).astype(np.uint8)
    flattened = _flatten_maxima(levels, round(_RELIEF_UM * _LEVELS_PER_UM))
    return label(local_maxima(flattened, connectivity=1) & foreground, connectivity=1)


def _flatten_maxima(levels: np.ndarray, relief: int) -> np.ndarray:
    """`levels`, uint8 [H, W], without the maxima that rise less than `relief` above a pass to a higher one.

    They are lowered by that much and dilated again and again below themselves until nothing changes, which is what
    `skimage.morphology.reconstruction` gives; that sorts all pixels, which takes ten times as long.
    """
    import cv2

    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    grown, further = cv2.subtract(levels, np.full_like(levels, relief)), np.empty_like(levels)
    while True:
        before = grown.copy()
        for _ in range(_DILATIONS_AT_ONCE):
            cv2.min(cv2.dilate(grown, cross, dst=further), levels, dst=grown)
        if np.array_equal(before, grown):
            return grown


def _add_unmarked(markers: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """`markers`, and the connected foreground that has none as a marker of its own."""
    from skimage.measure import label

    regions = label(foreground, connectivity=1)
    marked = np.zeros(int(regions.max()) + 1, bool)
    marked[regions[markers > 0]] = True
    marked[0] = True
    number = int(markers.max()) + np.cumsum(~marked)
    return np.where(marked[regions], markers, number[regions])
