"""Supervised segmentation: how a network teacher learns nuclei from masks."""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from histill.distill.judges import OverlapJudge
from histill.distill.task import Student, Terms, weighted
from histill.errors import InputError
from histill.losses.dense import cross_entropy, soft_dice
from histill.stream.batches import TileBatch


@dataclass(frozen=True)
class Supervised:
    """Cross-entropy, plus `dice` times the soft Dice loss, against the tile's mask at the network's size."""

    classes: tuple[str, ...]
    dice: float

    def loss(self, model: Student, batch: TileBatch) -> Terms:
        """The terms against the mask, which is sampled at the nearest pixel when the network sees another size."""
        logits = model(batch.student.float())
        target, side = self.reference(batch), logits.shape[-1]
        if target.shape[-1] != side:
            target = F.interpolate(target[:, None].float(), size=side, mode="nearest-exact")[:, 0].long()
        parts = {"cross_entropy": (1.0, cross_entropy(logits, target, batch.valid))}
        if self.dice:
            one_hot = F.one_hot(target, len(self.classes)).movedim(-1, 1).float()
            parts["dice"] = (self.dice, soft_dice(logits, one_hot, batch.valid))
        return weighted(parts)

    def judge(self, tiles: np.ndarray) -> OverlapJudge:
        """Agreement with the masks."""
        return OverlapJudge(len(self.classes), self.reference)

    def reference(self, batch: TileBatch) -> Tensor:
        """The mask, int64 [B, H, W]. Raises InputError when it holds a class that has no name."""
        if batch.mask is None:
            raise RuntimeError("a supervised batch brings no masks")
        highest = int(batch.mask.max())
        if highest >= len(self.classes):
            raise InputError(
                f"a mask holds class {highest} and the network learns {len(self.classes)} "
                f"({', '.join(self.classes)}); name every class in `classes`, or correct the masks."
            )
        return batch.mask.long()
