"""Keep padded rows of a batch out of losses and gradients."""

import math

import torch
from torch import Tensor


def mask_padding(values: Tensor, valid: Tensor) -> Tensor:
    """`values` [B, ...] with padded rows set to zero, half precision cast to float32.

    Apply it before any arithmetic: masking only the loss would let a NaN through (0 * NaN).
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
    """`loss` divided by `share`, the labeled part of what it counts; 0 when `share` is 0, where `loss` is 0 too."""
    return loss / torch.where(share > 0, share, 1).to(loss.dtype)


def broadcast_valid(valid: Tensor, like: Tensor) -> Tensor:
    """`valid` [B] reshaped to [B, 1, ...], to broadcast against `like`."""
    return valid.view(-1, *[1] * (like.dim() - 1))
