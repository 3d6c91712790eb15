"""Confusion counts of pixels, exact integers that add up over batches and workers, and the overlaps from them."""

import numpy as np
import torch
from torch import Tensor


def count_confusion(decided: Tensor, reference: Tensor, classes: int) -> Tensor:
    """Confusion matrix of each tile's pixels, int64 [B, K, K], reference class by predicted class.

    `decided` (the predictions) and `reference` are int64 [B, H, W] in 0..K-1; pixels with `reference` below 0 are
    ignored.
    """
    tiles, cells = len(decided), classes * classes
    offset = torch.arange(tiles, device=decided.device).reshape(-1, 1) * cells
    places = offset + reference.flatten(1) * classes + decided.flatten(1)
    places = torch.where(reference.flatten(1) < 0, tiles * cells, places)  # an extra cell that is dropped
    counts = torch.bincount(places.flatten(), minlength=tiles * cells + 1)
    return counts[:-1].reshape(tiles, classes, classes)


def dice_and_iou(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dice and IoU of each class, float64 [..., K], over all pixels of a set, from its counts [..., K, K].

    Dice_k = 2 TP / (2 TP + FP + FN) and IoU_k = TP / (TP + FP + FN), summed over the set, not averaged over images. A
    class that is neither present nor predicted is NaN.
    """
    counts = counts.astype(np.float64)
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    either = counts.sum(-1) + counts.sum(-2)
    known = either > 0
    nothing = np.full(either.shape, np.nan)
    dice = np.divide(2 * hit, either, out=nothing.copy(), where=known)
    return dice, np.divide(hit, either - hit, out=nothing, where=known)
