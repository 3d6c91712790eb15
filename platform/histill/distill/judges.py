"""Judges: exact sums over a split, whatever the batches and the number of workers."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from histill.metrics.overlap import confusion
from histill.metrics.weighted import class_figures, label_figures, overlap_figures
from histill.models.resolution import logits_at_size
from histill.stream.batches import TileBatch


class OverlapJudge:
    """Dice and mIoU of decisions for pixels, at the size of the reference, and how much foreground there is in each."""

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
        valid = batch.valid
        self.sums += confusion(decided[valid], reference[valid], len(self.sums)).sum(0).cpu()

    def figures(self) -> dict[str, float]:
        counts = self.sums.numpy()
        pixels = max(1, int(counts.sum()))
        foreground = {
            "foreground": float(counts[:, 1:].sum() / pixels),  # as it is decided
            "reference_foreground": float(counts[1:].sum() / pixels),
        }
        return _plain(overlap_figures(counts[None], np.ones((1, 1)))) | foreground


class ClassJudge:
    """Figures of decisions for whole tiles. A tile's logits lie in a row of their own, so that a sum is a gathering."""

    def __init__(
        self,
        classes: int,
        tiles: np.ndarray,
        reference: Callable[[TileBatch], Tensor] | None = None,
        *,
        multi_label: bool = False,
    ) -> None:
        """`tiles` are the manifest rows (int64, ascending) of the split.

        `reference` gives the classes that decisions are held against, int64 [B], or [B, K] of 0 and 1 if tiles are
        `multi_label`; None: the tiles' labels.
        """
        self._reference, self._classes, self._multi_label = reference, classes, multi_label
        labels = classes if multi_label else 1
        self.sums = torch.zeros(len(tiles), classes + labels + 1, dtype=torch.float64)  # logits, labels, whether seen
        self._tiles = torch.from_numpy(tiles)

    def add(self, output: Tensor, batch: TileBatch) -> None:
        found = batch.label if self._reference is None else self._reference(batch)
        assert found is not None
        valid = batch.valid.cpu()
        rows = torch.searchsorted(self._tiles, batch.index.cpu()[valid])
        label = found.cpu()[valid].double().flatten(1) if self._multi_label else found.cpu()[valid, None].double()
        self.sums[rows] += torch.cat([output.cpu()[valid].double(), label, torch.ones(len(label), 1).double()], 1)

    def figures(self) -> dict[str, float]:
        seen = self.sums[self.sums[:, -1] > 0]
        logits, labels = seen[:, : self._classes].numpy(), seen[:, self._classes : -1].long().numpy()
        once = np.ones((1, len(seen)))
        if self._multi_label:
            return _plain(label_figures(logits, labels, once))
        return _plain(class_figures(logits, labels[:, 0], once))


def _plain(figures: dict[str, np.ndarray]) -> dict[str, float]:
    """Those of the one weighting there is."""
    return {name: float(values[0]) for name, values in figures.items()}
