"""Classification of whole tiles: what a pretrained encoder is fine-tuned for."""

from dataclasses import dataclass

import numpy as np

from histill.distill.judges import ClassJudge
from histill.distill.task import Student, Terms, answers_of, weighted
from histill.losses.logits import binary_cross_entropy, cross_entropy
from histill.outputs import OutputSpec
from histill.stream.batches import TileBatch


@dataclass(frozen=True)
class Classify:
    """Cross-entropy with the tile's label or labels, its classes weighted if `class_weights` are given."""

    outputs: OutputSpec
    class_weights: tuple[float, ...] | None
    smoothing: float = 0.0  # of the labels

    def loss(self, model: Student, batch: TileBatch) -> Terms:
        """The mean over the valid tiles of weight x cross-entropy; weights are 1 on average over the training tiles."""
        assert batch.label is not None
        logits, _ = answers_of(model, batch.student.float())
        if self.outputs.multi_label:
            loss = binary_cross_entropy(logits, batch.label, batch.valid, self.smoothing)
            return weighted({"cross_entropy": (1.0, loss)})
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        loss = cross_entropy(logits, batch.label, batch.valid, weights, self.smoothing)
        return weighted({"cross_entropy": (1.0, loss)})

    def judge(self, tiles: np.ndarray) -> ClassJudge:
        """Agreement with the labels."""
        return ClassJudge(self.outputs, tiles)
