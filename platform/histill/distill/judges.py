"""Judges: exact sums over a split, whatever the batches and the number of workers."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from histill.metrics.classification import Classification
from histill.metrics.overlap import Overlap, confusion
from histill.models.resolution import logits_at_size
from histill.stream.batches import TileBatch


class OverlapJudge:
    """Dice and mIoU of decisions for pixels, at the size of the reference."""

    def __init__(
        self,
        classes: int,
        reference: Callable[[TileBatch], Tensor],
        decide: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(1),
    ) -> None:
        """`reference` gives the classes, int64 [B, H, W] of 0..classes-1, that decisions are held against.

        `decide` makes such decisions of the model's logits, [B, K, H, W].
        """
        self.sums = torch.zeros(classes, classes, dtype=torch.int64)
        self._reference, self._decide = reference, decide

    def add(self, output: Tensor, batch: TileBatch) -> None:
        reference = self._reference(batch)
        decided = self._decide(logits_at_size(output, reference.shape[-1]))
        self.sums += confusion(decided, reference, batch.valid, len(self.sums)).cpu()

    def figures(self) -> dict[str, float]:
        overlap = Overlap.of(self.sums)
        return {"dice": overlap.mean_dice, "miou": overlap.mean_iou}


class ClassJudge:
    """Figures of decisions for whole tiles. A tile's logits lie in a row of their own, so that a sum is a gathering."""

    def __init__(self, classes: int, tiles: np.ndarray) -> None:
        """`tiles` are the manifest rows (int64, ascending) of the split."""
        self.sums = torch.zeros(len(tiles), classes + 2, dtype=torch.float64)  # logits, label, whether it was seen
        self._tiles = torch.from_numpy(tiles)

    def add(self, output: Tensor, batch: TileBatch) -> None:
        assert batch.label is not None
        valid = batch.valid.cpu()
        rows = torch.searchsorted(self._tiles, batch.index.cpu()[valid])
        label = batch.label.cpu()[valid, None].double()
        self.sums[rows] += torch.cat([output.cpu()[valid].double(), label, torch.ones_like(label)], 1)

    def figures(self) -> dict[str, float]:
        seen = self.sums[self.sums[:, -1] > 0]
        found = asdict(Classification.of(seen[:, :-2], seen[:, -2].long()))
        return {name: value for name, value in found.items() if isinstance(value, float)}
