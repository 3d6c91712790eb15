"""Supervised segmentation: how a network teacher learns nuclei from masks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from histill.distill.boundary import counted, decided, with_boundary
from histill.distill.judges import OverlapJudge
from histill.distill.masks import masks_among
from histill.distill.task import Student, Terms, answers_of, weighted
from histill.losses.logits import cross_entropy, soft_dice
from histill.stream.batches import TileBatch


@dataclass(frozen=True)
class Supervised:
    """Cross-entropy, plus `dice` times the soft Dice loss, against the tile's mask at the network's size.

    With a `boundary_px` above 0 the last of `classes` is the boundary, which is made from the masks there.
    """

    classes: tuple[str, ...]
    dice: float
    boundary_px: int = 0
    deep: float = 0.0
    name_of: Callable[[int], str] = field(default=lambda row: f"tile {row}", compare=False)  # by row of the manifest

    def loss(self, model: Student, batch: TileBatch) -> Terms:
        """The terms against the mask, which is sampled at the nearest pixel when the network sees another size.

        `deep` is the sum of the same for each deep stage.
        """
        logits, stages = answers_of(model, batch.student.float())
        target = _sampled(self.reference(batch), logits.shape[-1])
        if self.boundary_px:
            target = with_boundary(target, self.boundary_px, len(self.classes) - 1)
        parts = self._parts(logits, target, batch.valid)
        if stages:
            losses = [
                weighted(self._parts(stage, _sampled(target, stage.shape[-1]), batch.valid)).loss for stage in stages
            ]
            parts["deep"] = (self.deep, torch.stack(losses).sum())
        return weighted(parts)

    def _parts(self, logits: Tensor, target: Tensor, valid: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Weight and value of each term, for logits of the target's size."""
        parts = {"cross_entropy": (1.0, cross_entropy(logits, target, valid))}
        if self.dice:
            one_hot = F.one_hot(target, len(self.classes)).movedim(-1, 1).float()
            parts["dice"] = (self.dice, soft_dice(logits, one_hot, valid))
        return parts

    def judge(self, tiles: np.ndarray) -> OverlapJudge:
        """Agreement with the masks."""
        return OverlapJudge(len(counted(self.classes)), self.reference, partial(decided, classes=self.classes))

    def reference(self, batch: TileBatch) -> Tensor:
        """The mask, int64 [B, H, W]. Raises InputError when it holds a class that has no name."""
        return masks_among(batch, counted(self.classes), self.name_of)


def _sampled(mask: Tensor, side: int) -> Tensor:
    """`mask`, int64 [B, H, W], at the nearest pixels of [B, side, side]."""
    if mask.shape[-1] == side:
        return mask
    return F.interpolate(mask[:, None].float(), size=side, mode="nearest-exact")[:, 0].long()
