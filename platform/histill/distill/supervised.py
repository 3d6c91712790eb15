"""Supervised segmentation: how a network teacher learns nuclei from masks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from histill.distill.boundary import counted, decided, with_boundary
from histill.distill.judges import OverlapJudge
from histill.distill.masks import masks_among
from histill.distill.task import Student, Terms, weighted
from histill.losses.dense import cross_entropy, soft_dice
from histill.stream.batches import TileBatch


@dataclass(frozen=True)
class Supervised:
    """Cross-entropy, plus `dice` times the soft Dice loss, against the tile's mask at the network's size.

    With a `boundary_px` above 0 the last of `classes` is the boundary, which is made from the masks there.
    """

    classes: tuple[str, ...]
    dice: float
    boundary_px: int = 0
    name_of: Callable[[int], str] = field(default=lambda row: f"tile {row}", compare=False)  # by row of the manifest

    def loss(self, model: Student, batch: TileBatch) -> Terms:
        """The terms against the mask, which is sampled at the nearest pixel when the network sees another size."""
        logits = model(batch.student.float())
        target, side = self.reference(batch), logits.shape[-1]
        if target.shape[-1] != side:
            target = F.interpolate(target[:, None].float(), size=side, mode="nearest-exact")[:, 0].long()
        if self.boundary_px:
            target = with_boundary(target, self.boundary_px, len(self.classes) - 1)
        parts = {"cross_entropy": (1.0, cross_entropy(logits, target, batch.valid))}
        if self.dice:
            one_hot = F.one_hot(target, len(self.classes)).movedim(-1, 1).float()
            parts["dice"] = (self.dice, soft_dice(logits, one_hot, batch.valid))
        return weighted(parts)

    def judge(self, tiles: np.ndarray) -> OverlapJudge:
        """Agreement with the masks."""
        return OverlapJudge(len(counted(self.classes)), self.reference, partial(decided, classes=self.classes))

    def reference(self, batch: TileBatch) -> Tensor:
        """The mask, int64 [B, H, W]. Raises InputError when it holds a class that has no name."""
        return masks_among(batch, counted(self.classes), self.name_of)
