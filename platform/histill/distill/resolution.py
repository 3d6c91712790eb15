"""Resolution distillation: a student at low resolution mimics a teacher at high resolution, and needs no label.

DiPalma et al., "Resolution-Based Distillation for Efficient Histology Image Classification", Artificial Intelligence in
Medicine 119:102136 (2021), doi 10.1016/j.artmed.2021.102136, arXiv 2101.04170: the divergence of the answers plus the
distance of the last feature maps, the teacher's brought to the student's size. Here each is a term among others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from histill.config.distill import DistillLoss
from histill.distill.judges import ClassJudge, OverlapJudge
from histill.distill.masks import masks_among, measure_labeled, sampled
from histill.distill.rckd import logits_of_levels
from histill.distill.task import Judge, Student, Terms, weighted
from histill.distill.terms import TERMS, Seen
from histill.models.matching import Answers, Layers
from histill.models.resolution import logits_at_size
from histill.outputs import OutputSpec
from histill.stream.batches import TileBatch
from histill.stream.responses import logits_of
from histill.teachers.network import NetworkTeacher
from histill.teachers.teacher import Teacher


@dataclass
class Distill:
    """The teacher's response comes from the cache, or live from `teacher`, which sees its own view of the tile."""

    outputs: OutputSpec
    terms: DistillLoss
    layers: Layers
    teacher: Teacher | None
    judged_by_teacher: bool = False  # for want of labels or masks
    name_of: Callable[[int], str] = field(default=lambda row: f"tile {row}", compare=False)  # by row of the manifest
    _queue: Tensor | None = None

    def loss(self, model: Student, batch: TileBatch) -> Terms:
        """Weighted sum of the terms."""
        student = model(batch.student.float())
        assert isinstance(student, Answers)
        logits, maps = self._teacher_says(batch, student.logits.shape[-1])
        target, queue = self._target(batch, logits), self._remembered(maps, batch.valid)
        labeled = None if batch.mask is None else batch.labeled or measure_labeled(batch)
        seen = Seen(student, logits, maps, target, batch.valid, self.layers, self.outputs.multi_label, queue, labeled)
        return weighted({name: (term.weight, TERMS[name](term, seen)) for name, term in self.terms.terms.items()})

    def judge(self, tiles: np.ndarray) -> Judge:
        """Agreement with labels or masks; with the teacher's decisions where a split has none."""
        if self.outputs.dense:
            return OverlapJudge(self.outputs, self._decisions if self.judged_by_teacher else self._masks)
        reference = self._decisions if self.judged_by_teacher else None
        return ClassJudge(self.outputs, tiles, reference)

    def state_dict(self) -> dict[str, Tensor]:
        """The teacher's keys of earlier tiles, float [Q, D], newest first."""
        return {} if self._queue is None else {"queue": self._queue}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from these keys."""
        self._queue = state.get("queue")

    def _target(self, batch: TileBatch, logits: Tensor) -> Tensor:
        """Labels, int64, in the shape of the decisions; -1 where there are none."""
        if not self.outputs.dense:
            assert batch.label is not None
            return batch.label
        if batch.mask is None:
            return logits.new_full((len(logits), *logits.shape[-2:]), -1, dtype=torch.int64)
        side = logits.shape[-1]
        return sampled(self._masks(batch), side)

    def _masks(self, batch: TileBatch) -> Tensor:
        return masks_among(batch, self.outputs.scored, self.name_of)

    def _decisions(self, batch: TileBatch) -> Tensor:
        """The teacher's, int64 [B], [B, H, W] or, multi-label, [B, K]."""
        return self.outputs.decide(self._teacher_says(batch)[0])

    def _teacher_says(self, batch: TileBatch, size_px: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, for pixels at `size_px` or at the teacher's size, and the feature maps that are compared."""
        if batch.response is not None:
            levels, maps = batch.response, {} if batch.map is None else {self.layers.last[1]: batch.map}
            if self.outputs.dense:
                return logits_of_levels(levels, size_px or levels.shape[-1], self.outputs), maps
            return self.outputs.unpack(logits_of(levels))[:, :, 0, 0], maps
        if self.teacher is None or batch.teacher is None:
            raise RuntimeError("a batch brings no response, and there is no teacher to ask")
        if isinstance(self.teacher, NetworkTeacher):
            graph = self.terms.attention is not None and torch.is_grad_enabled()
            logits, maps = self.teacher.with_maps(batch.teacher, self.layers.teacher, graph=graph)
        else:
            logits, maps = self.teacher.respond(batch.teacher).to(batch.teacher.device), {}
        return (logits_at_size(logits, size_px) if self.outputs.dense and size_px else logits), maps

    def _remembered(self, maps: dict[str, Tensor], valid: Tensor) -> Tensor:
        """The keys of earlier batches, [Q, D]; those of this one will be among the next one's."""
        if self.terms.contrastive is None:
            return valid.new_zeros((0, 0), dtype=torch.float32)
        keys = maps[self.layers.last[1]].detach().mean((2, 3))[valid]
        earlier = keys[:0] if self._queue is None else self._queue.to(keys.device)
        self._queue = torch.cat([keys, earlier])[: self.terms.contrastive.queue]
        return earlier
