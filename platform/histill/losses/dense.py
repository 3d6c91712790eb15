"""Losses on per-pixel class logits, safe for batches with padded rows.

Shapes, in every function: logits are float [B, K, H, W] with K >= 2 and class 0 the background; `valid` is
bool [B], False for a padded row. A padded row counts in no loss and gets a gradient of exactly zero, whatever
it holds, NaN included. Every loss is a float scalar, the mean over valid pixels (or, for `soft_dice`, over
valid tiles); with no valid row it is 0 and its gradient is zero. To join the losses of several workers
exactly, weight each by its number of valid rows. Half-precision logits are raised to float32 first.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Cross-entropy from the teacher's softened probabilities to the student's, times T^2.

    L = T^2 * mean over pixels of -sum_k p_k log q_k, with p = softmax(z_teacher / T) and
    q = softmax(z_student / T) (Hinton et al., arXiv 1503.02531, section 2); T^2 keeps the size of the
    gradient when T changes. The teacher's entropy is not subtracted, so the least possible loss is that
    entropy times T^2, not 0. No gradient reaches the teacher.

    Args:
        temperature: T > 0 (else `ValueError`).
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature} but must be above 0.")
    student = _masked(student_logits, valid)
    teacher = _masked(teacher_logits.detach(), valid)
    log_q = F.log_softmax(student / temperature, dim=1)
    p = F.softmax(teacher / temperature, dim=1)
    return temperature**2 * _mean_over_valid(-(p * log_q).sum(1), valid)


def hard_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy with the teacher's most probable class of each pixel as the target."""
    return cross_entropy(student_logits, _masked(teacher_logits.detach(), valid).argmax(1), valid)


def cross_entropy(logits: Tensor, target: Tensor, valid: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy with hard labels: mean over valid pixels of -w_y log softmax(z)_y.

    The sum is divided by the number of valid pixels, weighted or not. torch divides by the sum of the weights
    instead, which depends on the labels and so cannot be joined over workers.

    Args:
        target: int64 [B, H, W], classes 0..K-1 in valid rows.
        class_weights: float [K], or None for 1 everywhere.
    """
    logits = _masked(logits, valid)
    target = torch.where(_rows(valid, target), target, 0)
    if class_weights is not None:
        class_weights = class_weights.to(logits.dtype)
    loss = F.cross_entropy(logits, target, weight=class_weights, reduction="none")
    return _mean_over_valid(loss, valid)


def soft_dice(logits: Tensor, target_probabilities: Tensor, valid: Tensor) -> Tensor:
    """1 - Dice of probabilities, per tile and foreground class, then the mean over both.

    D = (2 sum q t + 1) / (sum q^2 + sum t^2 + 1), sums over the pixels of one tile, q = softmax(z) and t the
    target (Milletari et al., arXiv 1606.04797, section 3). With squares in the denominator D is 1 exactly
    when q = t, also for soft targets. The added 1, worth one pixel, makes D = 1 where a class is absent from
    both.

    Args:
        target_probabilities: float [B, K, H, W] in 0..1: soft responses or one-hot labels.
    """
    q = _masked(logits, valid).softmax(1)[:, 1:]
    t = _masked(target_probabilities, valid)[:, 1:]
    overlap = (q * t).sum((2, 3))
    size = q.square().sum((2, 3)) + t.square().sum((2, 3))
    dice = (2 * overlap + 1) / (size + 1)
    return _mean_over_valid(1 - dice, valid)


def _masked(values: Tensor, valid: Tensor) -> Tensor:
    """Zero the padded rows before any arithmetic; masking the loss alone lets a NaN through (0 * NaN)."""
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    return torch.where(_rows(valid, values), values, 0)


def _mean_over_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` [B, ...] over the entries of valid rows; 0 when there is none."""
    total = torch.where(_rows(valid, values), values, 0).sum()
    entries = valid.sum() * math.prod(values.shape[1:])
    return total / entries.clamp(min=1)


def _rows(valid: Tensor, like: Tensor) -> Tensor:
    return valid.view(-1, *[1] * (like.dim() - 1))
