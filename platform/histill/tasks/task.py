"""A task turns a batch into a loss, and a model's outputs into figures; the loop knows no more than this."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from histill.stream.tile_batch import TileBatch

Student = Callable[[Tensor], Any]
"""What is trained: pixels, float [B, 3, H, W] of 0..255, to logits; where more than its logits is learned
from, to `histill.models.projection.StudentOutput`."""


@dataclass(frozen=True)
class LossOutput:
    """The loss of one batch (a scalar, the mean over its valid tiles) and its parts."""

    loss: Tensor
    parts: Mapping[str, Tensor]


class Metric(Protocol):
    """Adds up what a model says of the tiles of a split.

    `state` is numbers that add up over batches and workers, so that figures are those of the whole set.
    """

    state: Tensor

    def update(self, output: Tensor, batch: TileBatch) -> None:
        """Count the model's `output` for the student's view of `batch`; padded rows have no part in it."""
        ...

    def compute(self) -> dict[str, float]:
        """The figures that `state` comes to, by name."""
        ...


class Task(Protocol):
    """What is learned."""

    def loss(self, model: Student, batch: TileBatch) -> LossOutput:
        """The terms of `batch`; padded rows have no part in them."""
        ...

    def build_metric(self, tiles: np.ndarray) -> Metric:
        """The metric of a split whose tiles are the manifest rows `tiles` (int64, ascending)."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A task whose loss depends on earlier batches."""

    def state_dict(self) -> dict[str, Tensor]:
        """What it remembers: tensors with a row for each thing, by name. The names are those of every worker."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` said; a name that is missing stands for nothing."""
        ...


def weighted_sum(parts: Mapping[str, tuple[float, Tensor]]) -> LossOutput:
    """The sum of (weight, value) pairs; `parts` keeps the unweighted values, which is what one reads in a curve."""
    loss = sum(weight * value for weight, value in parts.values())
    assert isinstance(loss, Tensor)
    return LossOutput(loss, {name: value.detach() for name, (_, value) in parts.items()})
