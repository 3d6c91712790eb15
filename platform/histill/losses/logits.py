"""Losses on class logits, of pixels or of whole tiles, safe for batches with padded rows.

Shapes, in every function: logits are float [B, K, H, W] or [B, K]; `valid` is bool [B], False for a padded row. A
padded row counts in no loss and gets a gradient of exactly zero, whatever it contains, NaN included. Every loss is a
float scalar, the mean over the pixels of valid rows (or over valid rows, for [B, K] and `soft_dice`); with no valid row
it is 0 and its gradient is zero. To combine the losses of several workers exactly, weight each by its number of valid
rows. Half-precision logits are cast to float32 first.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from histill.losses.padding import broadcast_valid, mask_padding, mean_over_valid


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Cross-entropy from the teacher's softened probabilities to the student's, times T^2.

    L = T^2 * mean over pixels of -sum_k p_k log q_k, with p = softmax(z_teacher / T) and
    q = softmax(z_student / T) (Hinton et al., arXiv 1503.02531, section 2); T^2 keeps the gradient's magnitude
    independent of T. The teacher's entropy is not subtracted, so the minimum is that entropy times T^2, not 0. No
    gradient reaches the teacher.

    Args:
        temperature: T > 0 (else `ValueError`).
    """
    student, teacher = _softened(student_logits, teacher_logits, valid, temperature)
    return temperature**2 * mean_over_valid(-(teacher.softmax(1) * F.log_softmax(student, dim=1)).sum(1), valid)


def hard_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy with the teacher's most probable class as the target."""
    return cross_entropy(student_logits, mask_padding(teacher_logits.detach(), valid).argmax(1), valid)


def cross_entropy(
    logits: Tensor, target: Tensor, valid: Tensor, class_weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy with hard labels: mean over valid pixels of -w_y sum_k t_k log softmax(z)_k.

    t = (1 - e) onehot(y) + e / K with label smoothing e (Szegedy et al., arXiv 1512.00567, section 7). The sum is
    divided by the number of valid pixels, whatever their weights; torch divides by the sum of the weights instead,
    which depends on the labels and so cannot be combined over workers. For the same reason a pixel (or tile) without a
    label adds 0, gets a gradient of exactly zero, and still counts in the divisor; `tasks/masks.py` measures the
    labeled share over all workers to correct for it.

    Args:
        target: int64 [B, H, W] or [B], classes 0..K-1 in valid rows, below 0 where there is no label.
        class_weights: float [K], or None for 1 everywhere.
        smoothing: e, in 0..1.
    """
    known = broadcast_valid(valid, target) & (target >= 0)
    logits = torch.where(known.unsqueeze(1), mask_padding(logits, valid), 0)
    target = torch.where(known, target, 0)
    log_q = F.log_softmax(logits, dim=1)
    loss = -log_q.gather(1, target.unsqueeze(1)).squeeze(1)
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * log_q.mean(1)
    if class_weights is not None:
        loss = loss * class_weights.to(logits.dtype)[target]
    return mean_over_valid(torch.where(known, loss, 0), valid)


def binary_cross_entropy(logits: Tensor, target: Tensor, valid: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of classes that are not mutually exclusive: mean over valid tiles of the sum over classes.

    L = mean of -sum_k [t_k log s(z_k) + (1 - t_k) log(1 - s(z_k))], s the logistic function and
    t = (1 - e) y + e / 2 with label smoothing e. A tile without a label adds 0 but still counts in the divisor, as in
    `cross_entropy`.

    Args:
        target: int64 [B, K] of 0 and 1 in valid rows; the whole row is -1 for a tile without a label.
        smoothing: e, in 0..1.
    """
    logits = mask_padding(logits, valid)
    known = broadcast_valid(valid, target) & (target >= 0)
    wanted = (1 - smoothing) * target.clamp_min(0).to(logits.dtype) + smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return mean_over_valid(torch.where(known, loss, 0).sum(1), valid)


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """T^2 KL(p || q) from the teacher's softened probabilities to the student's, the mean over pixels or tiles.

    L = T^2 * mean of sum_k p_k (log p_k - log q_k), with p = softmax(z_teacher / T) and q = softmax(z_student / T), as
    in DiPalma et al., arXiv 2101.04170. Its gradient is that of `soft_cross_entropy`; its minimum is 0. No gradient
    reaches the teacher. `temperature` is T > 0 (else `ValueError`).
    """
    student, teacher = _softened(student_logits, teacher_logits, valid, temperature)
    log_p, log_q = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)
    return temperature**2 * mean_over_valid((log_p.exp() * (log_p - log_q)).sum(1), valid)


def bernoulli_kl(student_logits: Tensor, teacher_logits: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """`kl_divergence` for classes that are not mutually exclusive: T^2 times the sum over classes of Bernoulli KLs.

    L = T^2 * mean of sum_k [p_k log(p_k / q_k) + (1 - p_k) log((1 - p_k) / (1 - q_k))], with p = sigmoid(z_teacher / T)
    and q = sigmoid(z_student / T): the Kullback-Leibler divergence of independent labels (the multi-label logits term
    of Yang et al., arXiv 2308.06453).
    """
    student, teacher = _softened(student_logits, teacher_logits, valid, temperature)
    p = teacher.sigmoid()
    yes = p * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (1 - p) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return temperature**2 * mean_over_valid((yes + no).sum(1), valid)


def decoupled_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    valid: Tensor,
    temperature: float,
    target_weight: float,
    others_weight: float,
) -> Tensor:
    """Decoupled knowledge distillation: the target class against the rest, and the rest among themselves.

    L = T^2 * mean of a KL(b_teacher || b_student) + c KL(r_teacher || r_student): b = (p_y, 1 - p_y) for the target
    class y, and r the softened probabilities of the other classes, normalized to sum to 1 (Zhao et al., arXiv
    2203.08679, equations 5 and 7; plain KL divergence has a = 1 and c = 1 - p_y of the teacher).

    Args:
        target: int64 [B] or [B, H, W], 0..K-1 in valid rows, K > 2 (with two classes c has no effect).
        target_weight: a.
        others_weight: c.
    """
    student, teacher = _softened(student_logits, teacher_logits, valid, temperature)
    target = torch.where(broadcast_valid(valid, target), target, 0).unsqueeze(1)
    is_target = torch.zeros_like(student, dtype=torch.bool).scatter_(1, target, True)
    log_p, log_q = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)
    log_p_target, log_q_target = log_p.gather(1, target).squeeze(1), log_q.gather(1, target).squeeze(1)
    # The rest's mass as the sum of its own probabilities: 1 - p_y would round to 0 for a confident teacher.
    log_p_rest = torch.logsumexp(log_p.masked_fill(is_target, -math.inf), 1)
    log_q_rest = torch.logsumexp(log_q.masked_fill(is_target, -math.inf), 1)
    target_term = log_p_target.exp() * (log_p_target - log_q_target) + log_p_rest.exp() * (log_p_rest - log_q_rest)
    p_others = (log_p - log_p_rest.unsqueeze(1)).exp().masked_fill(is_target, 0)
    gaps = (log_p - log_p_rest.unsqueeze(1)) - (log_q - log_q_rest.unsqueeze(1))
    others_term = (p_others * gaps).sum(1)
    return temperature**2 * mean_over_valid(target_weight * target_term + others_weight * others_term, valid)


def soft_dice(logits: Tensor, target_probabilities: Tensor, valid: Tensor, known: Tensor | None = None) -> Tensor:
    """1 - Dice of probabilities, per tile and foreground class, then the mean over both.

    D = (2 sum q t + 1) / (sum q^2 + sum t^2 + 1), sums over the pixels of one tile, q = softmax(z) and t the
    target (Milletari et al., arXiv 1606.04797, section 3). With squares in the denominator D is 1 exactly
    when q = t, also for soft targets. The added 1, worth one pixel, makes D = 1 where a class is absent from
    both. Pixels that are not `known` are left out of the sums; a tile without known pixels adds 0 but still counts in
    the mean.

    Args:
        target_probabilities: float [B, K, H, W] in 0..1: soft responses or one-hot labels.
        known: bool [B, H, W], or None for every pixel.
    """
    inside = broadcast_valid(valid, logits) if known is None else broadcast_valid(valid, logits) & known.unsqueeze(1)
    q, t = torch.where(inside, mask_padding(logits, valid), 0).softmax(1), mask_padding(target_probabilities, valid)
    q, t = (torch.where(inside, each, 0)[:, 1:] for each in (q, t))
    overlap = (q * t).sum((2, 3))
    size = q.square().sum((2, 3)) + t.square().sum((2, 3))
    dice = (2 * overlap + 1) / (size + 1)
    return mean_over_valid(1 - dice, valid)


def _softened(student: Tensor, teacher: Tensor, valid: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both logits divided by the temperature, the teacher's detached."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature} but must be above 0.")
    return mask_padding(student, valid) / temperature, mask_padding(teacher.detach(), valid) / temperature
