"""The task of every run: computes the terms of its loss from labels, masks and a teacher's responses.

Kinds of runs differ only in their loss (`losses/loss.py`). Teachers are trained, and encoders fine-tuned, on labels or
masks. RCKD pretraining follows a nuclei teacher (Kim et al., Bioengineering 10(11):1279, 2023, doi
10.3390/bioengineering10111279; the paper does not state its loss, and the default here is the per-pixel cross-entropy
with the teacher's softened probabilities). Resolution distillation follows a teacher at a higher resolution (DiPalma et
al., Artificial Intelligence in Medicine 119:102136, 2021, arXiv 2101.04170: the KL divergence of the outputs plus the
distance of the last feature maps).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from histill.losses.inputs import LossInputs
from histill.losses.loss import Loss
from histill.losses.term import Need, Term
from histill.models.embedding_heads import Projected
from histill.models.projection import StudentOutput
from histill.models.resample import resize_logits
from histill.outputs import OutputSpec
from histill.stream.tile_batch import TileBatch
from histill.tasks.boundary import add_boundary
from histill.tasks.embeddings import Embeddings
from histill.tasks.masks import measure_labeled, read_masks, sample_nearest
from histill.tasks.metrics import ClassificationMetric, EncoderMetric, SegmentationMetric
from histill.tasks.responses import Responses
from histill.tasks.task import LossOutput, Metric, Student, weighted_sum

_QUEUE = "queue"


@dataclass
class TrainingTask:
    """A loss, and the sources that its terms are computed from."""

    outputs: OutputSpec  # of the model
    objective: Loss
    responses: Responses | None = None  # of a teacher, if there is one
    embeddings: Embeddings | None = None  # of teachers of embeddings, if there are any
    prefixes: tuple[int, ...] = ()  # lengths of the prefixes of the embedding that learn from them, too
    class_weights: tuple[float, ...] | None = None  # 1 on average over the training tiles
    boundary_px: int = 0  # above 0 the last output class is the boundary, generated from the masks
    scored_by_teacher: bool = False  # instead of labels or masks
    name_of: Callable[[int], str] = field(default=lambda row: f"tile {row}", compare=False)  # by manifest row
    _queue: Tensor | None = field(default=None, compare=False)
    _embedding_queues: dict[str, Tensor] = field(default_factory=dict, compare=False)

    def loss(self, model: Student, batch: TileBatch) -> LossOutput:
        """The weighted sum of the terms; `deep` sums the terms on logits over the deep stages.

        Terms on embeddings are means over the embedding and its prefixes, each of which has to predict the teachers'.
        Masks are resampled by nearest neighbor when the network's input has another size.
        """
        output = _as_output(model(batch.student.float()))
        inputs = self._inputs(output, batch)
        parts = _evaluate(self.objective.terms, inputs)
        if output.embeddings[1:]:
            parts |= _evaluate_nested(self.objective.of_embeddings, inputs, output.embeddings)
        if output.deep:
            of_answers = self.objective.of_answers
            stages = [weighted_sum(_evaluate(of_answers, _at_stage(inputs, logits))).loss for logits in output.deep]
            parts["deep"] = (self.objective.deep_weight, torch.stack(stages).sum())
        return weighted_sum(parts)

    def state_dict(self) -> dict[str, Tensor]:
        """The teachers' keys of earlier tiles, float [Q, D], newest first."""
        queues = {f"{_QUEUE}.{name}": queue for name, queue in self._embedding_queues.items()}
        return queues if self._queue is None else {_QUEUE: self._queue, **queues}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore these keys."""
        self._queue = state.get(_QUEUE)
        prefix = f"{_QUEUE}."
        self._embedding_queues = {
            name.removeprefix(prefix): queue for name, queue in state.items() if name.startswith(prefix)
        }

    def build_metric(self, tiles: np.ndarray) -> Metric:
        """The metric against labels or masks, or against the teacher's decisions."""
        if self.outputs.dense:
            return SegmentationMetric(self.outputs, self.reference)
        if self.embeddings is not None and self.outputs.width is not None:
            widths = {name: source.width for name, source in self.embeddings.sources.items()}
            return EncoderMetric(self.outputs.width, widths, lambda batch: self._embed(batch)[0], self.prefixes)
        return ClassificationMetric(self.outputs, tiles, self._decisions if self.scored_by_teacher else None)

    def reference(self, batch: TileBatch) -> Tensor:
        """A segmenter's reference, int64 [B, H, W], with the boundary merged; -1 for ignored pixels.

        Raises InputError for a mask value that is not a class.
        """
        return self._decisions(batch) if self.scored_by_teacher else self._masks(batch)

    def _inputs(self, output: StudentOutput, batch: TileBatch) -> LossInputs:
        logits, needs = output.logits, self.objective.needs
        inputs = LossInputs(
            student=logits,
            valid=batch.valid,
            multi_label=self.outputs.multi_label,
            class_weights=None if self.class_weights is None else logits.new_tensor(self.class_weights),
            student_maps=output.maps,
            projected=output.projected,
            mixture=output.mixture,
        )
        if self.responses is not None:
            graph = "gradients" in needs and torch.is_grad_enabled()
            teacher, maps = self.responses.answer(batch, self.outputs, logits.shape[-1], graph=graph)
            layers = self.responses.layers
            queue = self._remember(maps, batch.valid)
            inputs = replace(inputs, teacher=teacher, teacher_maps=maps, layers=layers, queue=queue)
        if self.embeddings is not None:
            embeddings, tokens = self._embed(batch)
            own = output.embeddings[0]
            inputs = replace(
                inputs,
                embedding=own.embedding,
                embeddings=embeddings,
                projected_embeddings=own.by_teacher,
                embedding_weights=self.embeddings.weights,
                embedding_queues=self._remember_embeddings(embeddings, batch.valid),
                tokens=tokens,
                projected_tokens=output.projected_tokens,
            )
        if "labels" in needs and self.outputs.dense:
            labeled = batch.labeled or measure_labeled(batch)
            inputs = replace(
                inputs,
                target=self._target(batch, logits.shape[-1]),
                labeled_pixels=labeled.pixels,
                labeled_tiles=labeled.tiles,
            )
        elif "labels" in needs:
            inputs = replace(inputs, target=batch.label)
        return inputs

    def _embed(self, batch: TileBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        assert self.embeddings is not None
        return self.embeddings.answer(batch)

    def _target(self, batch: TileBatch, side: int) -> Tensor:
        """The mask at the network's size, int64 [B, side, side], with the boundary class if it is learned."""
        target = sample_nearest(self._masks(batch), side)
        return add_boundary(target, self.boundary_px, len(self.outputs.classes) - 1) if self.boundary_px else target

    def _masks(self, batch: TileBatch) -> Tensor:
        return read_masks(batch, self.outputs.scored, self.name_of)

    def _decisions(self, batch: TileBatch) -> Tensor:
        """The teacher's decisions, int64 [B], [B, H, W] or, multi-label, [B, K]."""
        assert self.responses is not None
        return self.outputs.decide(self.responses.answer(batch, self.outputs)[0])

    def _remember(self, maps: dict[str, Tensor], valid: Tensor) -> Tensor | None:
        """Return the teacher's pooled last maps of earlier batches, [Q, D], and queue this batch's for the next."""
        assert self.responses is not None
        kept = self._queue_tiles("maps")
        if not kept:
            return None
        keys = maps[self.responses.layers.last[1]].detach().mean((2, 3))[valid]
        earlier = keys[:0] if self._queue is None else self._queue.to(keys.device)
        self._queue = torch.cat([keys, earlier])[:kept]
        return earlier

    def _remember_embeddings(self, embeddings: Mapping[str, Tensor], valid: Tensor) -> dict[str, Tensor]:
        """Each teacher's embeddings of earlier batches, [Q, D]; this batch's are added for the next."""
        kept = self._queue_tiles("embeddings")
        if kept is None:
            return {}
        earlier = {}
        for name, each in embeddings.items():
            keys = each.detach()[valid]
            earlier[name] = self._embedding_queues.get(name, keys[:0]).to(keys.device)
            self._embedding_queues[name] = torch.cat([keys, earlier[name]])[:kept]
        return earlier

    def _queue_tiles(self, need: Need) -> int | None:
        """How many earlier tiles the terms with this need want; None: no term reads a queue."""
        kept = [term.queue_tiles for term in self.objective.select(need).values() if term.queue_tiles is not None]
        return max(kept, default=None)


def _evaluate(terms: Mapping[str, Term], inputs: LossInputs) -> dict[str, tuple[float, Tensor]]:
    """Weight and value of each term."""
    return {name: (term.weight, term(inputs)) for name, term in terms.items()}


def _evaluate_nested(
    terms: Mapping[str, Term], inputs: LossInputs, levels: Sequence[Projected]
) -> dict[str, tuple[float, Tensor]]:
    """Weight of each term, and the mean of its values at `levels`, the embedding and its prefixes."""
    found = [
        _evaluate(terms, replace(inputs, embedding=level.embedding, projected_embeddings=level.by_teacher))
        for level in levels
    ]
    return {name: (term.weight, torch.stack([each[name][1] for each in found]).mean()) for name, term in terms.items()}


def _as_output(output: StudentOutput | Tensor) -> StudentOutput:
    return output if isinstance(output, StudentOutput) else StudentOutput(output, {}, {}, None)


def _at_stage(inputs: LossInputs, logits: Tensor) -> LossInputs:
    """`inputs` at the lower resolution of a deep stage's logits."""
    side = logits.shape[-1]
    return replace(
        inputs,
        student=logits,
        teacher=None if inputs.teacher is None else resize_logits(inputs.teacher, side),
        target=None if inputs.target is None else sample_nearest(inputs.target, side),
    )
