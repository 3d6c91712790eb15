"""Classification of whole tiles: what a pretrained encoder is fine-tuned for."""

from dataclasses import dataclass

import numpy as np

from histill.distill.judges import ClassJudge
from histill.distill.task import Student, Terms, answers_of, weighted
from histill.losses.dense import cross_entropy
from histill.stream.batches import TileBatch


@dataclass(frozen=True)
class Classify:
    """Cross-entropy with the tile's label, its classes weighted if `class_weights` are given."""

    classes: tuple[str, ...]
    class_weights: tuple[float, ...] | None

    def loss(self, model: Student, batch: TileBatch) -> Terms:
        """The mean over the valid tiles of weight x cross-entropy; weights are 1 on average over the training tiles."""
        assert batch.label is not None
        logits = answers_of(model, batch.student.float())[0][:, :, None, None]  # one pixel a tile
        labels = batch.label.clamp_min(0)[:, None, None]
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return weighted({"cross_entropy": (1.0, cross_entropy(logits, labels, batch.valid, weights))})

    def judge(self, tiles: np.ndarray) -> ClassJudge:
        """Agreement with the labels."""
        return ClassJudge(len(self.classes), tiles)
