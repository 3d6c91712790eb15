"""The rows of a batch that count: padding is kept out of values and gradients alike."""

import math

import torch
from torch import Tensor


def mask_padding(values: Tensor, valid: Tensor) -> Tensor:
    """`values` [B, ...] with the padded rows at zero, half precision raised to float32.

    It comes before any arithmetic: masking the loss alone lets a NaN through (0 * NaN).
    """
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    return torch.where(broadcast_valid(valid, values), values, 0)


def mean_over_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` [B, ...] over the entries of valid rows; 0 when there is none."""
    total = torch.where(broadcast_valid(valid, values), values, 0).sum()
    entries = valid.sum() * math.prod(values.shape[1:])
    return total / entries.clamp(min=1)


def per_share(loss: Tensor, share: Tensor) -> Tensor:
    """`loss` over a share of what it counts; 0, as `loss` is, where that is none."""
    return loss / torch.where(share > 0, share, 1).to(loss.dtype)


def broadcast_valid(valid: Tensor, like: Tensor) -> Tensor:
    """`valid` [B] in the form [B, 1, ...] of `like`."""
    return valid.view(-1, *[1] * (like.dim() - 1))
