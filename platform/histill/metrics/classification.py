"""How well single-label classes are told apart, from the logits of a whole set."""

from dataclasses import dataclass

import torch
from torch import Tensor

_BINS = 15


@dataclass(frozen=True)
class Classification:
    """Figures over a whole set of tiles; a class without a tile has no part in the means."""

    balanced_accuracy: float  # mean recall of the classes
    macro_f1: float
    auroc: float  # one class against the others, mean over the classes
    calibration_error: float  # expected calibration error of the winning probability, 15 equal bins
    accuracy: float
    recall: tuple[float, ...]  # of each class, NaN where there is no tile
    confusion: tuple[tuple[int, ...], ...]  # tiles, reference class by decided class

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> "Classification":
        """From logits, float [N, K], and classes, int64 [N] in 0..K-1."""
        from torchmetrics.functional.classification import multiclass_calibration_error

        classes = logits.shape[1]
        probabilities, labels = logits.double().softmax(1), labels.long()
        decided = probabilities.argmax(1)
        counts = torch.bincount(labels * classes + decided, minlength=classes * classes).reshape(classes, classes)
        hit, there, said = counts.diagonal().double(), counts.sum(1).double(), counts.sum(0).double()
        present = there > 0
        recall = hit / there
        areas = [area_under_roc(probabilities[:, k], labels == k) for k in range(classes) if bool(present[k])]
        known = [area for area in areas if area == area]
        error = multiclass_calibration_error(probabilities.float(), labels, num_classes=classes, n_bins=_BINS)
        return cls(
            balanced_accuracy=float(recall[present].mean()),
            macro_f1=float((2 * hit / (there + said))[present].mean()),
            auroc=sum(known) / len(known) if known else float("nan"),
            calibration_error=float(error),
            accuracy=float(hit.sum() / there.sum()),
            recall=tuple(recall.tolist()),
            confusion=tuple(tuple(row) for row in counts.tolist()),
        )


def area_under_roc(scores: Tensor, positive: Tensor) -> float:
    """The chance that a positive scores above a negative, ties counting half (Mann & Whitney 1947); NaN without both.

    `scores` float [N], `positive` bool [N].
    """
    ordered, inverse, count = scores.unique(sorted=True, return_inverse=True, return_counts=True)
    del ordered
    last = count.cumsum(0).double()
    rank = (last - (count.double() - 1) / 2)[inverse]  # ranks from 1, ties share their mean
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    return float((rank[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
