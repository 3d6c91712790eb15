"""RCKD pretraining: the student answers what a nuclei teacher answers, without any label.

Kim et al., "RCKD: Response-Based Cross-Task Knowledge Distillation for Pathological Image Analysis", Bioengineering
10(11):1279 (2023), doi 10.3390/bioengineering10111279. The paper does not state its loss; ours is the plainest reading,
the per-pixel cross-entropy with the teacher's softened probabilities.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from histill.config.runs import RckdLoss
from histill.distill.task import Terms, weighted
from histill.losses.dense import hard_cross_entropy, soft_cross_entropy, soft_dice
from histill.models.resolution import at_size, logits_at_size
from histill.stream.batches import TileBatch
from histill.teachers.cache import full_logits
from histill.teachers.teacher import Teacher


@dataclass(frozen=True)
class Rckd:
    """The student sees the tile at `size_px`; the teacher's response comes from the cache, or live from `teacher`."""

    classes: tuple[str, ...]
    size_px: int
    weights: RckdLoss
    teacher: Teacher | None

    def loss(self, model: nn.Module, batch: TileBatch) -> Terms:
        """Weighted sum of the terms whose weight is above 0."""
        student = model(at_size(batch.tiles, self.size_px))
        teacher = logits_at_size(self._response(batch), self.size_px)
        weights, valid = self.weights, batch.valid
        parts: dict[str, tuple[float, Tensor]] = {}
        if weights.soft:
            parts["soft"] = (weights.soft, soft_cross_entropy(student, teacher, valid, weights.temperature))
        if weights.hard:
            parts["hard"] = (weights.hard, hard_cross_entropy(student, teacher, valid))
        if weights.dice:
            parts["dice"] = (weights.dice, soft_dice(student, teacher.softmax(1), valid))
        return weighted(parts)

    def reference(self, batch: TileBatch) -> Tensor:
        """The teacher's decisions."""
        return self._response(batch).argmax(1)

    def _response(self, batch: TileBatch) -> Tensor:
        if batch.response is not None:
            return full_logits(batch.response)
        if self.teacher is None:
            raise RuntimeError("an RCKD batch brings no response, and there is no teacher to ask")
        return self.teacher.respond(batch.tiles).to(batch.tiles.device)
