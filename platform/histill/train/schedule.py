"""The optimiser and its learning rate."""

import math

import torch
from torch import nn

from histill.config.runs import Optimiser


def make_optimiser(model: nn.Module, config: Optimiser) -> torch.optim.AdamW:
    """AdamW; norms, biases and other vectors do not decay."""
    decayed = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]
    free = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr)


def learning_rate(config: Optimiser, step: int, steps: int) -> float:
    """At global `step` of `steps`: linear warm-up to config.lr, then half a cosine down to 0."""
    warmup = int(config.warmup * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
