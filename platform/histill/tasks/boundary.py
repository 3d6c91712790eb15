"""The boundary: an extra last class along the edges of the others, which keeps adjacent objects apart.

After the ternary map of Kumar et al., "A Dataset and a Technique for Generalized Nuclear Segmentation for Computational
Pathology", IEEE TMI 36(7):1550 (2017), doi 10.1109/TMI.2017.2677499: background, inside, boundary. It is generated from
masks that do not contain it for training a teacher, and students learn it like any other class. Before anything is
scored or shown it is merged into the class it bounds (`OutputSpec.decide`), so that models with and without it are
comparable.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def add_boundary(mask: Tensor, width_px: int, boundary: int) -> Tensor:
    """Return `mask` with class `boundary` where the foreground lies within `width_px` pixels of another class.

    The distance is Chebyshev: each class keeps its region eroded by a square of side 2 `width_px` + 1. The edge of the
    tile is not a region's edge. Touching regions of the same class count as one, since semantic masks do not separate
    them. Ignored pixels create no boundary and stay ignored.

    Args:
        mask: int64 [B, H, W], classes 0..254 with 0 the background; below 0 for ignored pixels.
        width_px: at least 1.
    """
    classes, known = mask[:, None].float(), mask[:, None] >= 0
    side = 2 * width_px + 1
    highest, negated = (  # max_pool2d pads with -inf, so the outside of the tile has no effect
        F.max_pool2d(torch.where(known, each, -torch.inf), side, stride=1, padding=width_px)
        for each in (classes, -classes)
    )
    lowest = -negated
    return torch.where((mask > 0) & (highest != lowest)[:, 0], boundary, mask)
