"""Exact counts of decisions, which add up over batches and workers without any rounding."""

from dataclasses import dataclass

import torch
from torch import Tensor


def confusion(decided: Tensor, reference: Tensor, valid: Tensor, classes: int) -> Tensor:
    """int64 [K, K] counts of pixels, reference class by decided class, over the valid tiles.

    `decided` and `reference` are int64 [B, H, W] in 0..K-1 where valid (bool [B]).
    """
    cells = reference[valid].flatten() * classes + decided[valid].flatten()
    return torch.bincount(cells, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True)
class Overlap:
    """Dice and IoU of each class over a whole set, from its confusion counts.

    Dice_k = 2 TP / (2 TP + FP + FN) and IoU_k = TP / (TP + FP + FN), summed over all pixels of the set, not per image.
    A class that neither occurs nor is decided has no value (NaN) and no part in the means.
    """

    dice: tuple[float, ...]
    iou: tuple[float, ...]

    @classmethod
    def of(cls, counts: Tensor) -> "Overlap":
        """From int64 [K, K] counts, reference class by decided class."""
        counts = counts.double().cpu()
        hit = counts.diagonal()
        either = counts.sum(0) + counts.sum(1)
        return cls(tuple((2 * hit / either).tolist()), tuple((hit / (either - hit)).tolist()))

    @property
    def mean_dice(self) -> float:
        """Mean Dice of the classes but the background."""
        return _mean(self.dice[1:])

    @property
    def mean_iou(self) -> float:
        """Mean IoU of all classes."""
        return _mean(self.iou)


def _mean(values: tuple[float, ...]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")
