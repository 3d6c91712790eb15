"""The inputs of loss terms: everything known about one batch, as tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from histill.losses.layers import Layers, Pair


@dataclass(frozen=True)
class LossInputs:
    """One batch; inputs that no term needs or the run does not have are None or empty.

    Padded rows are False in `valid` and count in no loss, whatever they contain (`losses/padding.py`).
    """

    student: Tensor  # logits, float [B, K] of whole tiles or [B, K, H, W] of pixels; an encoder's embedding
    valid: Tensor  # bool [B]
    multi_label: bool = False  # the classes are not mutually exclusive
    teacher: Tensor | None = None  # logits in the shape of the student's
    target: Tensor | None = None  # int64 [B], [B, H, W] or, multi-label, [B, K]; below 0 where there is no label
    labeled_pixels: Tensor | None = None  # for masks: labeled share of the global batch's valid pixels
    labeled_tiles: Tensor | None = None  # for masks: share of its valid tiles with any labeled pixel
    class_weights: Tensor | None = None  # float [K], 1 on average over the training tiles
    layers: Layers = field(default_factory=Layers)
    student_maps: Mapping[str, Tensor] = field(default_factory=dict)  # float [B, C, h, w], by layer
    teacher_maps: Mapping[str, Tensor] = field(default_factory=dict)  # by layer
    projected: Mapping[Pair, Tensor] = field(default_factory=dict)  # student maps projected to the teacher's channels
    mixture: Tensor | None = None  # float [len(layers.mixed)], learned
    queue: Tensor | None = None  # float [Q, D], the teacher's pooled last maps of earlier tiles
    embedding: Tensor | None = None  # the student's, float [B, D]
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)  # each teacher's, normalized, float [B, D], by name
    projected_embeddings: Mapping[str, Tensor] = field(default_factory=dict)  # the student's at each teacher's width
    embedding_weights: Mapping[str, float] = field(default_factory=dict)  # above 0, by teacher
    embedding_queues: Mapping[str, Tensor] = field(default_factory=dict)  # of earlier tiles, float [Q, D], by teacher
    tokens: Mapping[str, Tensor] = field(default_factory=dict)  # each teacher's token map, float [B, C, h, w]
    projected_tokens: Mapping[str, Tensor] = field(default_factory=dict)  # the student's last map at its channels
