"""Resample tiles and logits to another resolution."""

import torch
import torch.nn.functional as F

LEAST = 1e-6
"""Lower bound of averaged probabilities, which keeps their logarithm finite."""


def resize_tiles(tiles: torch.Tensor, size_px: int) -> torch.Tensor:
    """Resize tiles [B, C, H, W], uint8 or float, to float32 [B, C, size_px, size_px].

    Downsampling averages areas, as a lower magnification does; upsampling is bilinear.
    """
    tiles = tiles.float()
    if tiles.shape[-1] == size_px:
        return tiles
    if tiles.shape[-1] > size_px:
        return F.adaptive_avg_pool2d(tiles, size_px)
    return F.interpolate(tiles, size=size_px, mode="bilinear", align_corners=False)


def resize_logits(logits: torch.Tensor, size_px: int) -> torch.Tensor:
    """Resize logits [B, K, H, W] to `size_px`; when downsampling, the result's softmax is the area-averaged softmax.

    Averaging logits instead would let one confident pixel outvote its neighbors. Upsampling is bilinear in the logits.
    """
    if logits.shape[-1] == size_px:
        return logits
    if logits.shape[-1] < size_px:
        return F.interpolate(logits, size=size_px, mode="bilinear", align_corners=False)
    return F.adaptive_avg_pool2d(logits.softmax(1), size_px).clamp_min(LEAST).log()
