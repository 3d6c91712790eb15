"""The output of a model or teacher: per pixel or per tile, its classes, and how logits become decisions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from histill.config.runs import BOUNDARY

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

Kind = Literal["segmentation", "classification", "encoder"]
Form = Literal["segmentation", "classification", "multi_label", "encoder"]
MAIN_METRIC: dict[Form, str] = {
    "segmentation": "dice",
    "classification": "balanced_accuracy",
    "multi_label": "balanced_accuracy",
    "encoder": "cka",
}


@dataclass(frozen=True)
class OutputSpec:
    """The channels of a network's logits and what they mean.

    The only place where logits become probabilities and decisions. Files store it in the keys `kind` (or `dense`),
    `classes` and `multi_label`; a segmenter's boundary class is recognized by its name.
    """

    kind: Kind
    classes: tuple[str, ...] = ()  # by channel; a segmenter's background first, its boundary last; none of an encoder
    multi_label: bool = False  # a classifier's classes are not mutually exclusive
    width: int | None = None  # of an encoder's embeddings

    @property
    def dense(self) -> bool:
        """Whether the output is per pixel, rather than for the whole tile or window."""
        return self.kind == "segmentation"

    @property
    def form(self) -> Form:
        """The form of the output: a class per pixel, a class per tile, several per tile, or an embedding."""
        return "multi_label" if self.multi_label else self.kind

    @property
    def boundary(self) -> bool:
        """Whether the last class is the boundary, which decisions merge into the class it bounds."""
        return self.dense and len(self.classes) > 2 and self.classes[-1] == BOUNDARY

    @property
    def scored(self) -> tuple[str, ...]:
        """The classes that decisions choose from: all except a boundary."""
        return self.classes[:-1] if self.boundary else self.classes

    @property
    def packed_channels(self) -> int:
        """Number of channels of `pack`ed logits."""
        return len(self.classes) - (not self.multi_label)

    @property
    def main_metric(self) -> str:
        """The metric that models are compared by."""
        return MAIN_METRIC[self.form]

    @property
    def activation(self) -> Literal["softmax", "sigmoid"]:
        """The activation that turns logits into probabilities."""
        return "sigmoid" if self.multi_label else "softmax"

    def probabilities(self, logits: "Tensor") -> "Tensor":
        """Class probabilities in 0..1, [B, K, ...], from logits [B, K, ...]."""
        return logits.sigmoid() if self.multi_label else logits.softmax(1)

    def decide(self, logits: "Tensor") -> "Tensor":
        """Decisions among `scored` from logits [B, K, ...], int64 [B, ...]; with multiple labels 0 and 1, [B, K].

        The most probable class, after adding a boundary's probability to that of the most probable foreground class: a
        pixel of a nucleus counts as such both inside and at its edge. With multiple labels, those above 1/2.
        """
        if self.multi_label:
            return (logits > 0).long()
        if not self.boundary:
            return logits.argmax(1)
        import torch

        highest, likeliest = logits[:, 1:-1].max(1)
        foreground = torch.logaddexp(highest, logits[:, -1])
        return torch.where(foreground > logits[:, 0], likeliest + 1, 0)

    def names(self, decision: "ArrayLike") -> tuple[str, ...]:
        """The class names of one decision: of an index or, with multiple labels, of the entries above 0, [K]."""
        found = np.asarray(decision)
        if self.multi_label:
            return tuple(name for name, held in zip(self.classes, found > 0, strict=True) if held)
        return (self.classes[int(found)],)

    def pack(self, logits: "Tensor") -> "Tensor":
        """[B, K, ...] -> [B, packed_channels, ...]: z_k - z_0 if classes are mutually exclusive, else unchanged.

        Softmax is invariant to the shift, and a channel is saved.
        """
        return logits if self.multi_label else logits[:, 1:] - logits[:, :1]

    def unpack(self, packed: "Tensor") -> "Tensor":
        """The inverse of `pack`, with z_0 = 0."""
        if self.multi_label:
            return packed
        import torch

        return torch.cat([torch.zeros_like(packed[:, :1]), packed], dim=1)
