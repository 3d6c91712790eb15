"""What a stream yields: one worker's tiles of one global batch, with their labels, masks and responses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class TileBatch:
    """One worker's part of one global batch.

    Places without a valid tile show other tiles of the epoch, so that batch statistics come from real tiles only;
    everything else in these places is empty. Masks and responses show the same window of the tile as the views do, at
    the tile's own resolution.
    """

    student: torch.Tensor  # uint8 [B, 3, s, s], channels last in memory
    teacher: torch.Tensor | None  # uint8 [B, 3, t, t]
    valid: torch.Tensor  # bool [B]; False: padding, or a tile that could not be decoded
    index: torch.Tensor  # int64 [B], rows of the manifest, -1 for padding
    label: torch.Tensor | None  # int64 [B] class indices or [B, K] of 0 and 1; -1 for padding or no label
    mask: torch.Tensor | None  # uint8 [B, H, W] class indices, 255 for ignored pixels
    response: torch.Tensor | None  # uint8 [B, K - 1, H, W] levels, [B, K - 1, 1, 1] of whole tiles; see responses.py
    planned: int  # tiles in the whole global batch, over all workers
    map: torch.Tensor | None = None  # float32 [B, C, h, w], a cached feature map of the teacher
    embeddings: Mapping[str, torch.Tensor] = field(default_factory=dict)  # cached, float32 [B, D], by teacher
    tokens: Mapping[str, torch.Tensor] = field(default_factory=dict)  # their feature maps, float32 [B, C, h, w]
    labeled: "Labeled | None" = None  # fractions of the global batch that masks label

    def map_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "TileBatch":
        """The batch with `change` made to every tensor that has a row for each tile."""

        def changed(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: change(tensor) for name, tensor in value.items()}
            return change(value) if torch.is_tensor(value) else value

        return TileBatch(**{name: changed(value) for name, value in vars(self).items()})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "TileBatch":
        """The batch with its tensors on `device`; the loops of others call it, Lightning's among them."""
        return self.map_rows(lambda tensor: tensor.to(device, non_blocking=non_blocking))


@dataclass(frozen=True)
class Labeled:
    """The labeled fractions of a global batch, at the side that the student sees: scalars, float64, in 0..1."""

    pixels: torch.Tensor  # of the valid tiles' pixels, those that have a class
    tiles: torch.Tensor  # of the valid tiles, those with at least one such pixel
