"""The same tissue at another resolution."""

import torch
import torch.nn.functional as F


def at_size(tiles: torch.Tensor, size_px: int) -> torch.Tensor:
    """Tiles [B, C, H, W], uint8 or float, as float32 [B, C, size_px, size_px].

    Shrinking averages areas, as a lower magnification does; growing is bilinear.
    """
    tiles = tiles.float()
    if tiles.shape[-1] == size_px:
        return tiles
    if tiles.shape[-1] > size_px:
        return F.adaptive_avg_pool2d(tiles, size_px)
    return F.interpolate(tiles, size=size_px, mode="bilinear", align_corners=False)


def logits_at_size(logits: torch.Tensor, size_px: int) -> torch.Tensor:
    """Logits [B, K, H, W] whose softmax is the area-averaged softmax of `logits` when shrinking.

    Averaging logits instead would let one confident pixel outvote its neighbours. Growing is bilinear in the logits.
    """
    if logits.shape[-1] == size_px:
        return logits
    if logits.shape[-1] < size_px:
        return F.interpolate(logits, size=size_px, mode="bilinear", align_corners=False)
    return F.adaptive_avg_pool2d(logits.softmax(1), size_px).clamp_min(1e-6).log()
