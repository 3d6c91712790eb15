"""Figures of weighted tiles, many weightings at once.

Weights of one give the figures of a set, those of redrawn cases its bootstrap, and ones and zeros those of a part: one
slide, one stain. Each function takes float64 weights [D, N] and returns a float64 array [D] by figure; a class without
weight has no part in the means, and what cannot be told is NaN.
"""

import warnings

import numpy as np
from scipy import sparse, special

from histill.metrics.overlap import dice_and_iou
from histill.outputs import OutputSpec

BINS = 15  # of confidence, equally wide
Figures = dict[str, np.ndarray]


def compute_figures(outputs: OutputSpec, said: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> Figures:
    """The figures of what was `said` with these `outputs`: `overlap_metrics` of a segmenter, which knows the `truth`
    already, `multi_label_metrics` or `classification_metrics` of a classifier."""
    if outputs.dense:
        return overlap_metrics(said, weights)
    return (multi_label_metrics if outputs.multi_label else classification_metrics)(said, truth, weights)


def classification_metrics(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Figures:
    """Of classes that exclude each other: logits, float [N, K], and classes, int64 [N] in 0..K-1.

    balanced_accuracy is the mean recall, macro_f1 the mean F1, auroc the mean area of one class against the others,
    calibration_error the expected calibration error of the winning probability (Guo et al. 2017, eq. 3).
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
    """Of labels that do not exclude each other: logits, float [N, K], and labels, [N, K] of 0 and 1.

    Each class is held against its absence, a logit above 0 decides for it; balanced_accuracy is the mean of recall and
    specificity. A class that no tile has, or every tile, has no part in the means.
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
    """Of segmentations: pixels of each tile, int [N, K, K], reference class by decided class.

    dice is the mean Dice of the classes but the background, miou the mean IoU of all, over the whole weighted set.
    """
    tiles, classes = counts.shape[:2]
    sums = weights @ counts.reshape(tiles, classes * classes).astype(np.float64)
    dice, iou = dice_and_iou(sums.reshape(-1, classes, classes))
    return {"dice": nan_mean(dice[:, 1:]), "miou": nan_mean(iou)}


def area_under_roc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The chance that a positive scores above a negative, ties counting half (Mann & Whitney 1947); NaN without both.

    `scores` float [N], `positive` bool [N].
    """
    levels, level = np.unique(scores, return_inverse=True)
    right, wrong = (_summed(weights * kind, level, len(levels)) for kind in (positive, ~positive))
    below = wrong.cumsum(1) - wrong / 2
    return _ratio((right * below).sum(1), right.sum(1) * wrong.sum(1))


def calibration_error(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The gap between confidence, float [N] in 0..1, and how often it is right, bool [N], over bins by their weight."""
    bins = bin_of(confidence)
    claimed, held = (_summed(weights * each, bins, BINS) for each in (confidence, right))
    return _ratio(np.abs(claimed - held).sum(1), weights.sum(1))


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """The bin of each confidence, int64 [N] in 0..BINS-1; one that lies on an edge belongs below it."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _summed(weights: np.ndarray, place: np.ndarray, places: int) -> np.ndarray:
    """The sum of the weights, [D, N], that lie at each of `places`."""
    tiles = len(place)
    member = sparse.csr_array((np.ones(tiles), (np.arange(tiles), place)), shape=(tiles, places))
    summed: np.ndarray = weights @ member
    return summed


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, of what is no NaN."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        mean: np.ndarray = np.nanmean(values, axis=-1)
    return mean
