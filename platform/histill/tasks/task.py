"""The task interface: all that the training loop knows of the losses and metrics of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from histill.stream.tile_batch import TileBatch

Student = Callable[[Tensor], Any]
"""The network in training: maps pixels, float [B, 3, H, W] in 0..255, to logits, or to
`histill.models.projection.StudentOutput` where the loss needs more than logits."""


@dataclass(frozen=True)
class LossOutput:
    """The loss of one batch (a scalar, the mean over its valid tiles) and its unweighted parts."""

    loss: Tensor
    parts: Mapping[str, Tensor]


class Metric(Protocol):
    """Accumulates a model's outputs over the tiles of a split.

    `state` is additive over batches and workers, so that metrics are those of the whole set.
    """

    state: Tensor

    def update(self, output: Tensor, batch: TileBatch) -> None:
        """Add the model's `output` for the student's view of `batch`; padded rows are ignored."""
        ...

    def compute(self) -> dict[str, float]:
        """Compute the metrics from `state`, by name."""
        ...


class Task(Protocol):
    """The loss and the metrics of a run."""

    def loss(self, model: Student, batch: TileBatch) -> LossOutput:
        """The loss of `batch` and its parts; padded rows are ignored."""
        ...

    def build_metric(self, tiles: np.ndarray) -> Metric:
        """Build the metric of a split whose tiles are the manifest rows `tiles` (int64, ascending)."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A task whose loss depends on earlier batches."""

    def state_dict(self) -> dict[str, Tensor]:
        """The state: tensors whose first dimension may vary, by name. All workers have the same names."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned; a missing name means empty state."""
        ...


def weighted_sum(parts: Mapping[str, tuple[float, Tensor]]) -> LossOutput:
    """The weighted sum of (weight, value) pairs; `parts` keeps the unweighted values for logging."""
    loss = sum(weight * value for weight, value in parts.values())
    assert isinstance(loss, Tensor)
    return LossOutput(loss, {name: value.detach() for name, (_, value) in parts.items()})
