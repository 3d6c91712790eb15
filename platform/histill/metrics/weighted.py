"""Metrics of weighted tiles, for many weightings at once.

Unit weights give the metrics of a set, weights from resampled cases its bootstrap, and 0/1 weights a subgroup: one
slide, one stain. Each function takes float64 weights [D, N] and returns a float64 array [D] per metric; a class without
weight is left out of the means, and undefined values are NaN.
"""

import warnings

import numpy as np
from scipy import sparse, special

from histill.metrics.overlap import dice_and_iou
from histill.outputs import OutputSpec

BINS = 15  # of confidence, of equal width
Figures = dict[str, np.ndarray]


def compute_figures(outputs: OutputSpec, said: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> Figures:
    """The metrics for these `outputs`: `overlap_metrics` for a segmenter, where `said` are confusion counts and `truth`
    is unused; `multi_label_metrics` or `classification_metrics` for a classifier."""
    if outputs.dense:
        return overlap_metrics(said, weights)
    return (multi_label_metrics if outputs.multi_label else classification_metrics)(said, truth, weights)


def classification_metrics(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Figures:
    """Metrics of mutually exclusive classes: logits, float [N, K], and classes, int64 [N] in 0..K-1.

    balanced_accuracy is the mean recall, macro_f1 the mean F1, auroc the mean one-vs-rest area, calibration_error the
    expected calibration error of the top probability (Guo et al. 2017, eq. 3).
    """
    classes = logits.shape[1]
    probabilities = special.softmax(logits.astype(np.float64), axis=1)
    decided = probabilities.argmax(1)
    counts = _summed(weights, labels * classes + decided, classes * classes).reshape(-1, classes, classes)
    hit, there, said = np.diagonal(counts, axis1=1, axis2=2), counts.sum(2), counts.sum(1)
    areas = [area_under_roc(probabilities[:, k], labels == k, weights) for k in range(classes)]
    return {
        "balanced_accuracy": nan_mean(_ratio(hit, there)),
        "macro_f1": nan_mean(np.where(there > 0, _ratio(2 * hit, there + said), np.nan)),
        "auroc": nan_mean(np.stack(areas, 1)),
        "calibration_error": calibration_error(probabilities.max(1), decided == labels, weights),
        "accuracy": _ratio(hit.sum(1), there.sum(1)),
    }


def multi_label_metrics(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Figures:
    """Metrics of multi-label tiles: logits, float [N, K], and labels, [N, K] of 0 and 1.

    Each class is a binary decision, positive for a logit above 0; balanced_accuracy is the mean of recall and
    specificity. A class that no tile or every tile has is left out of the means.
    """
    there, said = labels.astype(bool), logits > 0
    probabilities = special.expit(logits.astype(np.float64))
    hit, positives, decided = (weights @ each.astype(np.float64) for each in (said & there, there, said))
    negatives = weights.sum(1, keepdims=True) - positives
    both = (positives > 0) & (negatives > 0)
    recall, specificity = _ratio(hit, positives), 1 - _ratio(decided - hit, negatives)
    columns = range(labels.shape[1])
    areas = [area_under_roc(probabilities[:, k], there[:, k], weights) for k in columns]
    errors = [calibration_error(probabilities[:, k], there[:, k], weights) for k in columns]
    return {
        "balanced_accuracy": nan_mean(np.where(both, (recall + specificity) / 2, np.nan)),
        "macro_f1": nan_mean(np.where(both, _ratio(2 * hit, positives + decided), np.nan)),
        "auroc": nan_mean(np.stack(areas, 1)),
        "calibration_error": np.mean(errors, axis=0),
    }


def overlap_metrics(counts: np.ndarray, weights: np.ndarray) -> Figures:
    """Metrics of segmentations: pixel counts of each tile, int [N, K, K], reference class by predicted class.

    dice is the mean Dice of the classes without background, miou the mean IoU of all, over the whole weighted set.
    """
    tiles, classes = counts.shape[:2]
    sums = weights @ counts.reshape(tiles, classes * classes).astype(np.float64)
    dice, iou = dice_and_iou(sums.reshape(-1, classes, classes))
    return {"dice": nan_mean(dice[:, 1:]), "miou": nan_mean(iou)}


def area_under_roc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The probability that a positive scores above a negative, ties counting half (Mann & Whitney 1947).

    `scores` float [N], `positive` bool [N]; NaN without both positives and negatives.
    """
    levels, level = np.unique(scores, return_inverse=True)
    right, wrong = (_summed(weights * kind, level, len(levels)) for kind in (positive, ~positive))
    below = wrong.cumsum(1) - wrong / 2
    return _ratio((right * below).sum(1), right.sum(1) * wrong.sum(1))


def calibration_error(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean over bins of |confidence - accuracy|, for confidence float [N] in 0..1 and `right` bool [N]."""
    bins = bin_of(confidence)
    claimed, held = (_summed(weights * each, bins, BINS) for each in (confidence, right))
    return _ratio(np.abs(claimed - held).sum(1), weights.sum(1))


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """The bin of each confidence, int64 [N] in 0..BINS-1; a value on an edge belongs to the lower bin."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _summed(weights: np.ndarray, place: np.ndarray, places: int) -> np.ndarray:
    """Sum the weights [D, N] by bin: [D, places], where `place` is the bin of each tile."""
    tiles = len(place)
    member = sparse.csr_array((np.ones(tiles), (np.arange(tiles), place)), shape=(tiles, places))
    summed: np.ndarray = weights @ member
    return summed


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaNs; NaN if nothing is left."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        mean: np.ndarray = np.nanmean(values, axis=-1)
    return mean
