"""RCKD pretraining: the student answers what a nuclei teacher answers, without any label.

Kim et al., "RCKD: Response-Based Cross-Task Knowledge Distillation for Pathological Image Analysis", Bioengineering
10(11):1279 (2023), doi 10.3390/bioengineering10111279. The paper does not state its loss; ours is the plainest reading,
the per-pixel cross-entropy with the teacher's softened probabilities.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from histill.config.runs import RckdLoss
from histill.distill.judges import OverlapJudge
from histill.distill.task import Student, Terms, answers_of, weighted
from histill.losses.logits import hard_cross_entropy, soft_cross_entropy, soft_dice
from histill.models.resolution import LEAST, at_size, logits_at_size
from histill.outputs import OutputSpec
from histill.stream.batches import TileBatch
from histill.stream.responses import logits_of
from histill.teachers.teacher import Teacher


@dataclass(frozen=True)
class Rckd:
    """The teacher's response comes from the cache, or live from `teacher`, which sees its own view of the tile."""

    outputs: OutputSpec
    weights: RckdLoss
    teacher: Teacher | None

    def loss(self, model: Student, batch: TileBatch) -> Terms:
        """Weighted sum of the terms whose weight is above 0; `deep` is the sum of the same for each deep stage."""
        student, deep = answers_of(model, batch.student.float())
        response = self._response(batch, student.shape[-1])
        parts = self._parts(student, response, batch.valid)
        if deep:
            losses = [weighted(self._parts(stage, response, batch.valid)).loss for stage in deep]
            parts["deep"] = (self.weights.deep, torch.stack(losses).sum())
        return weighted(parts)

    def _parts(self, student: Tensor, response: Tensor, valid: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Weight and value of each term, for logits of any size."""
        teacher, weights = logits_at_size(response, student.shape[-1]), self.weights
        parts: dict[str, tuple[float, Tensor]] = {}
        if weights.soft:
            parts["soft"] = (weights.soft, soft_cross_entropy(student, teacher, valid, weights.temperature))
        if weights.hard:
            parts["hard"] = (weights.hard, hard_cross_entropy(student, teacher, valid))
        if weights.dice:
            parts["dice"] = (weights.dice, soft_dice(student, teacher.softmax(1), valid))
        return parts

    def judge(self, tiles: np.ndarray) -> OverlapJudge:
        """Agreement with the teacher's decisions."""
        return OverlapJudge(self.outputs, self.reference)

    def reference(self, batch: TileBatch) -> Tensor:
        """The teacher's decisions, int64 [B, H, W], a boundary merged into what it bounds."""
        return self.outputs.decide(self._response(batch))

    def _response(self, batch: TileBatch, size_px: int | None = None) -> Tensor:
        """The teacher's logits, [B, K, size_px, size_px]; at the tiles' own size if it is None."""
        if batch.response is not None:
            return logits_of_levels(batch.response, size_px or batch.response.shape[-1], self.outputs)
        if self.teacher is None or batch.teacher is None:
            raise RuntimeError("an RCKD batch brings no response, and there is no teacher to ask")
        answer = self.teacher.respond(batch.teacher).to(batch.teacher.device)
        return logits_at_size(answer, size_px or answer.shape[-1])


def logits_of_levels(levels: Tensor, size_px: int, outputs: OutputSpec) -> Tensor:
    """A segmenter's cached levels, uint8 [B, K - 1, H, W], as logits, float32 [B, K, size_px, size_px].

    `logits_at_size` of their full logits, at a sixth of the time when shrinking: that is for every pixel of a tile,
    and here in place and without a channel of zeros for class 0.
    """
    relative = logits_of(levels)
    if size_px >= levels.shape[-1]:
        return logits_at_size(outputs.unpack(relative), size_px)
    odds = relative.exp_()  # of each class against class 0; at most e^10
    others = at_size(odds.div_(odds.sum(1, keepdim=True).add_(1)), size_px)
    return torch.cat([1 - others.sum(1, keepdim=True), others], 1).clamp_min_(LEAST).log_()
