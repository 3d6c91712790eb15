"""Counts of found and true objects, which add up over tiles, and the figures from them.

Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019, arXiv 1801.00868, equation 1): a found and a true
object of one class match if their IoU is above 1/2, which leaves each at most one partner.

    PQ = sum of the IoU of matches / (TP + FP / 2 + FN / 2)        F1 = TP / (TP + FP / 2 + FN / 2)

Aggregated Jaccard index (Kumar et al., IEEE TMI 36(7):1550, 2017, algorithm 1): each true object takes the found one of
the highest IoU, and what is taken by none counts in the union.

    AJI = sum of |G and P| / (sum of |G or P| + sum of |P| of those that none took)

All sums are over the whole set, for each class, as Dice is.
"""

import numpy as np

from histill.metrics.weighted import Figures, nan_mean
from histill.objects.instances import Instances

COUNTS = ("matches", "false", "missed", "iou", "intersection", "union")
"""What is counted for each class of a tile: the matches, the found and the true objects without one, the sum of the
matches' IoU, and the two sums of the aggregated Jaccard index, in pixels."""


def count_objects(found: Instances, true: Instances, classes: int, ignored: np.ndarray | None = None) -> np.ndarray:
    """float64 [classes - 1, 6]: `COUNTS` of each class but the background.

    Args:
        found, true: objects of one image.
        classes: number K of classes, with the background.
        ignored: bool [H, W], pixels that say nothing: they count for no object, and a found object of which more than
            half is ignored is left out (Kirillov et al., section 4.1).
    """
    if ignored is not None and ignored.any():
        hidden = np.bincount(found.labels[ignored], minlength=len(found.classes) + 1)[1:]
        found = found.keep(2 * hidden <= found.areas)
        found = Instances(np.where(ignored, 0, found.labels), found.classes, found.probabilities)
    both = _intersections(true, found)
    return np.stack([_count_class(both, true, found, each) for each in range(1, classes)])


def object_metrics(counts: np.ndarray, weights: np.ndarray) -> Figures:
    """pq, aji and object_f1, [D] each: the means over the classes, of sums under tile weights.

    Args:
        counts: float64 [N, K - 1, 6], of each tile.
        weights: float64 [D, N].
    """
    tiles, classes, kinds = counts.shape
    sums = (weights @ counts.reshape(tiles, classes * kinds)).reshape(-1, classes, kinds)
    return {name: nan_mean(values) for name, values in quality_of_classes(sums).items()}


def quality_of_classes(sums: np.ndarray) -> Figures:
    """pq, aji and object_f1 of each class, float64 [..., K - 1], from sums [..., K - 1, 6]; NaN without objects."""
    matches, false, missed, iou, intersection, union = np.moveaxis(sums, -1, 0)
    objects = matches + false / 2 + missed / 2
    return {
        "pq": _divide(iou, objects),
        "aji": _divide(intersection, union),
        "object_f1": _divide(matches, objects),
    }


def _intersections(true: Instances, found: Instances) -> np.ndarray:
    """int64 [P, 3]: true object, found object (counted from 0), and their common pixels, for those that have some."""
    shared = (true.labels > 0) & (found.labels > 0)
    count = len(found.classes)
    cells = (true.labels[shared].astype(np.int64) - 1) * count + found.labels[shared] - 1
    places, pixels = np.unique(cells, return_counts=True)
    return np.stack([places // max(count, 1), places % max(count, 1), pixels], axis=1)


def _count_class(both: np.ndarray, true: Instances, found: Instances, number: int) -> np.ndarray:
    of_class, true_areas, found_areas = true.classes == number, true.areas, found.areas
    ours = found.classes == number
    one, other, pixels = both[of_class[both[:, 0]] & ours[both[:, 1]]].T
    union = true_areas[one] + found_areas[other] - pixels
    iou = pixels / union
    matched = iou > 0.5
    taken, intersection, joined = _take_best(one, other, pixels, union)
    alone = true_areas[of_class].sum() - true_areas[one[taken]].sum()  # true objects that meet none
    free = found_areas[ours].sum() - found_areas[np.unique(other[taken])].sum()
    matches = int(matched.sum())
    return np.array(
        [matches, ours.sum() - matches, of_class.sum() - matches, iou[matched].sum(), intersection,
         joined + alone + free],
        np.float64,
    )  # fmt: skip


def _take_best(
    one: np.ndarray, other: np.ndarray, pixels: np.ndarray, union: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """The pair of the highest IoU of each true object: its place among the pairs, and the sums of both areas.

    Of equal ones the found object that comes first.
    """
    order = np.lexsort((other, -pixels / union, one))
    first = order[np.unique(one[order], return_index=True)[1]]
    return first, float(pixels[first].sum()), float(union[first].sum())


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
