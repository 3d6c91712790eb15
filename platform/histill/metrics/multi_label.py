"""How well labels that do not exclude each other are told, from the logits of a whole set."""

from dataclasses import dataclass

from torch import Tensor

from histill.metrics.classification import area_under_roc

_BINS = 15


@dataclass(frozen=True)
class MultiLabel:
    """Figures over a whole set of tiles, each class against its absence; means are over the classes.

    A class that no tile has, or every tile, has no part in the means.
    """

    balanced_accuracy: float  # mean of recall and specificity
    macro_f1: float
    auroc: float
    calibration_error: float  # expected calibration error of the probabilities, 15 equal bins
    recall: tuple[float, ...]  # of each class, NaN where no tile has it
    specificity: tuple[float, ...]  # of each class, NaN where every tile has it

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> "MultiLabel":
        """From logits, float [N, K], and labels, int64 [N, K] of 0 and 1; a class is decided for at a logit above 0."""
        from torchmetrics.functional.classification import binary_calibration_error

        probabilities, there = logits.double().sigmoid(), labels.bool()
        said = logits > 0
        hit, positives, decided = ((each).sum(0).double() for each in (said & there, there, said))
        negatives = len(labels) - positives
        recall, specificity = hit / positives, 1 - (decided - hit) / negatives
        both = (positives > 0) & (negatives > 0)
        areas = [area_under_roc(probabilities[:, k], there[:, k]) for k in range(labels.shape[1]) if bool(both[k])]
        errors = [
            float(binary_calibration_error(probabilities[:, k].float(), labels[:, k], n_bins=_BINS))
            for k in range(labels.shape[1])
        ]
        return cls(
            balanced_accuracy=float(((recall + specificity) / 2)[both].mean()),
            macro_f1=float((2 * hit / (positives + decided))[both].mean()),
            auroc=sum(areas) / len(areas) if areas else float("nan"),
            calibration_error=sum(errors) / len(errors),
            recall=tuple(recall.tolist()),
            specificity=tuple(specificity.tolist()),
        )
