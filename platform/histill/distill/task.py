"""A task turns a batch into a loss; the loop knows no more of distillation than this."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from histill.stream.batches import TileBatch


@dataclass(frozen=True)
class Terms:
    """The loss of one batch (a scalar, the mean over the pixels of its valid tiles) and its weighted parts."""

    loss: Tensor
    parts: Mapping[str, Tensor]


class Task(Protocol):
    """What is learned."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def size_px(self) -> int: ...

    def loss(self, model: nn.Module, batch: TileBatch) -> Terms:
        """The terms of `batch`; padded rows have no part in them."""
        ...

    def reference(self, batch: TileBatch) -> Tensor:
        """The classes, int64 [B, H, W] at the tile's own size, that decisions are scored against."""
        ...


def weighted(parts: Mapping[str, tuple[float, Tensor]]) -> Terms:
    """Terms from (weight, value) pairs; `parts` keeps the unweighted values, which is what one reads in a curve."""
    loss = sum(weight * value for weight, value in parts.values())
    assert isinstance(loss, Tensor)
    return Terms(loss, {name: value.detach() for name, (_, value) in parts.items()})
