"""Supervised segmentation: how a network teacher learns nuclei from masks."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from histill.distill.boundary import with_boundary
from histill.distill.judges import OverlapJudge
from histill.distill.masks import masks_among, measure_labeled, per_share, sampled
from histill.distill.task import Student, Terms, answers_of, weighted
from histill.losses.logits import cross_entropy, soft_dice
from histill.outputs import OutputSpec
from histill.stream.batches import Labeled, TileBatch


@dataclass(frozen=True)
class Supervised:
    """Cross-entropy, plus `dice` times the soft Dice loss, against the tile's mask at the network's size.

    With a `boundary_px` above 0 the last class of `outputs` is the boundary, which is made from the masks there.
    """

    outputs: OutputSpec
    dice: float
    boundary_px: int = 0
    deep: float = 0.0
    name_of: Callable[[int], str] = field(default=lambda row: f"tile {row}", compare=False)  # by row of the manifest

    def loss(self, model: Student, batch: TileBatch) -> Terms:
        """The terms against the mask, which is sampled at the nearest pixel when the network sees another size.

        Each is the mean over the pixels, or the tiles, that are not ignored. `deep` is the sum of the same for each
        deep stage.
        """
        logits, stages = answers_of(model, batch.student.float())
        labeled = batch.labeled or measure_labeled(batch)
        target = sampled(self.reference(batch), logits.shape[-1])
        if self.boundary_px:
            target = with_boundary(target, self.boundary_px, len(self.outputs.classes) - 1)
        parts = self._parts(logits, target, batch.valid, labeled)
        if stages:
            losses = [
                weighted(self._parts(stage, sampled(target, stage.shape[-1]), batch.valid, labeled)).loss
                for stage in stages
            ]
            parts["deep"] = (self.deep, torch.stack(losses).sum())
        return weighted(parts)

    def _parts(
        self, logits: Tensor, target: Tensor, valid: Tensor, labeled: Labeled
    ) -> dict[str, tuple[float, Tensor]]:
        """Weight and value of each term, for logits of the target's size."""
        parts = {"cross_entropy": (1.0, per_share(cross_entropy(logits, target, valid), labeled.pixels))}
        if self.dice:
            one_hot = F.one_hot(target.clamp_min(0), len(self.outputs.classes)).movedim(-1, 1).float()
            dice = soft_dice(logits, one_hot, valid, known=target >= 0)
            parts["dice"] = (self.dice, per_share(dice, labeled.tiles))
        return parts

    def judge(self, tiles: np.ndarray) -> OverlapJudge:
        """Agreement with the masks."""
        return OverlapJudge(self.outputs, self.reference)

    def reference(self, batch: TileBatch) -> Tensor:
        """The mask, int64 [B, H, W], -1 where it is to be ignored. Raises InputError for a class that has no name."""
        return masks_among(batch, self.outputs.scored, self.name_of)
