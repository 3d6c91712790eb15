"""What a stream yields: one worker's tiles of one global batch, with all that belongs to them."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TileBatch:
    """One worker's part of one global batch.

    Places without a valid tile show other tiles of the epoch, so that what a network averages over its batch is of real
    tiles alone; everything else about them is empty. Masks and responses show the same window of the tile as the views
    do, at the tile's own resolution.
    """

    student: torch.Tensor  # uint8 [B, 3, s, s], channels last in memory
    teacher: torch.Tensor | None  # uint8 [B, 3, t, t]
    valid: torch.Tensor  # bool [B]; False: padding, or a tile that could not be decoded
    index: torch.Tensor  # int64 [B], rows of the manifest, -1 for padding
    label: torch.Tensor | None  # int64 [B] class indices or [B, K] of 0 and 1; -1 for padding, or without a label
    mask: torch.Tensor | None  # uint8 [B, H, W] class indices, 255 for what is to be ignored
    response: torch.Tensor | None  # uint8 [B, K - 1, H, W] levels, [B, K - 1, 1, 1] to whole tiles; see responses.py
    planned: int  # tiles in the whole global batch, over all workers
    map: torch.Tensor | None = None  # float32 [B, C, h, w], a cached feature map of the teacher
    labeled: "Labeled | None" = None  # how much of the global batch has a class in its masks


@dataclass(frozen=True)
class Labeled:
    """Which part of a global batch has a class, at the side that the student sees: scalars, float64, in 0..1."""

    pixels: torch.Tensor  # of the pixels of the valid tiles
    tiles: torch.Tensor  # of the valid tiles, those with such a pixel
