"""The boundary: a last class along the edges of the others, so that what lies close together is kept apart.

After the ternary map of Kumar et al., "A Dataset and a Technique for Generalized Nuclear Segmentation for Computational
Pathology", IEEE TMI 36(7):1550 (2017), doi 10.1109/TMI.2017.2677499: background, inside, boundary. A teacher learns it
from masks that do not hold it, and its students learn it as any other class. Where decisions are counted or shown it is
merged into what it bounds (`OutputSpec.decide`), so that models with and without it are judged alike.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def add_boundary(mask: Tensor, width_px: int, boundary: int) -> Tensor:
    """`mask` with class `boundary` where the foreground lies within `width_px` pixels of another class.

    The distance is that of a chessboard: what is left of each class is its region eroded by a square of
    2 `width_px` + 1. The edge of the tile is no edge of a region. Regions of one class that touch over a wide front
    are one region: the masks do not tell them apart. Of pixels to ignore nobody knows the class: they make no boundary,
    and stay as they are.

    Args:
        mask: int64 [B, H, W], classes 0..254, of which 0 is the background, and below 0 what is to be ignored.
        width_px: at least 1.
    """
    classes, known = mask[:, None].float(), mask[:, None] >= 0
    side = 2 * width_px + 1
    highest, negated = (  # padded with -inf: nothing beyond the tile
        F.max_pool2d(torch.where(known, each, -torch.inf), side, stride=1, padding=width_px)
        for each in (classes, -classes)
    )
    lowest = -negated
    return torch.where((mask > 0) & (highest != lowest)[:, 0], boundary, mask)
