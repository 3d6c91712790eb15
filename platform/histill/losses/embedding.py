"""Losses on embeddings: the student's, projected to each teacher's width, against the teacher's.

Embeddings are float [B, D], token maps float [B, C, h, w]; `valid` is bool [B], False for a padded row, which counts
nowhere and gets a gradient of exactly zero. No gradient reaches the teacher.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from histill.losses.padding import mask_padding, mean_over_valid


def cosine_distance(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """The mean over valid rows, and over the places of token maps, of 1 - cos(student, teacher)."""
    own, others = mask_padding(student, valid), mask_padding(teacher.detach(), valid)
    return mean_over_valid(1 - F.cosine_similarity(own, others, dim=1), valid)


def squared_distance(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """The mean over valid rows and dimensions of (student - teacher)^2."""
    own, others = mask_padding(student, valid), mask_padding(teacher.detach(), valid)
    return mean_over_valid((own - others).square(), valid)


def smooth_l1_distance(student: Tensor, teacher: Tensor, valid: Tensor, beta: float) -> Tensor:
    """The mean over valid rows and dimensions of x^2 / (2 beta) up to |x| = beta, and |x| - beta / 2 beyond.

    x = student - teacher (Girshick, "Fast R-CNN", arXiv 1504.08083, equation 3, with beta = 1 there).
    """
    own, others = mask_padding(student, valid), mask_padding(teacher.detach(), valid)
    return mean_over_valid(F.smooth_l1_loss(own, others, reduction="none", beta=beta), valid)


def center_channels(token_maps: Tensor, valid: Tensor) -> Tensor:
    """`token_maps` less each channel's mean over the places of valid rows."""
    maps = mask_padding(token_maps, valid)
    places = valid.sum().clamp(min=1) * maps.shape[2] * maps.shape[3]
    return maps - maps.sum((0, 2, 3), keepdim=True) / places


def average_teachers(weights: Mapping[str, float], value: Callable[[str], Tensor]) -> Tensor:
    """The mean of `value(teacher)` over the teachers, weighted."""
    total = sum(weights.values())
    return torch.stack([weight / total * value(name) for name, weight in weights.items()]).sum()
