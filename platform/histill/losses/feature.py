"""Losses on feature maps of student and teacher, which may differ in resolution.

Maps are float [B, C, h, w]; `valid` is bool [B], False for a padded row, which counts in no loss and gets a gradient of
exactly zero. Every loss is a float scalar, the mean over valid rows; no gradient reaches the teacher.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from histill.losses.inputs import LossInputs
from histill.losses.layers import Pair, Resize
from histill.losses.padding import mask_padding, mean_over_valid

_LEAST = 1e-12
"""Added to denominators and under roots that could be zero."""


def resize_map(feature_map: Tensor, height: int, width: int, how: Resize) -> Tensor:
    """Resize `feature_map` [B, C, h, w] to [B, C, height, width].

    "half_max_half_bicubic" is the mean of adaptive max-pooling and bicubic interpolation (DiPalma et al., arXiv
    2101.04170; their public code omits the second by mistake); "area" averages, "adaptive_max" max-pools.
    """
    if feature_map.shape[-2:] == (height, width):
        return feature_map
    if how == "area":
        return F.adaptive_avg_pool2d(feature_map, (height, width))
    pooled = F.adaptive_max_pool2d(feature_map, (height, width))
    if how == "adaptive_max":
        return pooled
    return (pooled + F.interpolate(feature_map, size=(height, width), mode="bicubic", align_corners=False)) / 2


def feature_distance(student: Tensor, teacher: Tensor, valid: Tensor, norm: Literal["l1", "l2"]) -> Tensor:
    """Mean over positions and channels of (s - t)^2, or of |s - t| (L_feat of DiPalma et al., arXiv 2101.04170).

    Both maps [B, C, h, w]: the student's after its projection, the teacher's after `resize_map`.
    """
    gap = mask_padding(student, valid) - mask_padding(teacher.detach(), valid)
    return mean_over_valid(gap.square() if norm == "l2" else gap.abs(), valid)


def pair_distance(inputs: LossInputs, pair: Pair, norm: Literal["l1", "l2"], resize: Resize) -> Tensor:
    """`feature_distance` of a pair of layers, with the teacher's map resized to the student's."""
    own, others = inputs.projected[pair], inputs.teacher_maps[pair[1]].detach()
    height, width = own.shape[-2:]
    return feature_distance(own, resize_map(others, height, width, resize), inputs.valid, norm)


def mix_distances(distances: Tensor, mixture: Tensor) -> Tensor:
    """Feature distances of several pairs of layers with learned weights: sum_p softmax(m)_p d_p.

    After Javed et al., "Knowledge Distillation in Histology Landscape by Multi-Layer Features Supervision", IEEE JBHI
    (2023), doi 10.1109/JBHI.2023.3237749: one student layer is supervised by several teacher layers with learned
    weights.

    Args:
        distances: float [P], for example of P teacher layers to one student layer.
        mixture: float [P], learned.
    """
    return (mixture.softmax(0) * distances).sum()


def grad_cam(feature_map: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM, [B, h, w]: relu(sum_c a_c A_c), a_c being the mean over positions of d(class score) / d(A_c).

    Selvaraju et al., arXiv 1610.02391, equations 1 and 2. `gradient` is that of each tile's class score with respect to
    its `feature_map`, both [B, C, h, w].
    """
    return (gradient.mean((2, 3), keepdim=True) * feature_map).sum(1).relu()


def attention_distance(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Root mean squared difference of Grad-CAM maps scaled to 0..1 by minimum and maximum, the mean over tiles.

    del Amor et al., "Attention to detail: inter-resolution knowledge distillation", EUSIPCO 2023, arXiv 2401.06010.
    `student` [B, h, w] is first upsampled bilinearly to the teacher's [B, H, W], as for a view of lower resolution.
    """
    seen, wanted = mask_padding(student, valid), mask_padding(teacher.detach(), valid)
    if seen.shape != wanted.shape:
        size = tuple(wanted.shape[-2:])
        seen = F.interpolate(seen[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    gap = _to_unit_range(seen) - _to_unit_range(wanted)
    return mean_over_valid((gap.square().mean((1, 2)) + _LEAST).sqrt(), valid)


def _to_unit_range(maps: Tensor) -> Tensor:
    """Scale each of `maps` [B, h, w] from its minimum (0) to its maximum (1); a constant map becomes 0."""
    low, high = torch.aminmax(maps.flatten(1), dim=1)
    return (maps - low[:, None, None]) / (high - low + _LEAST)[:, None, None]
