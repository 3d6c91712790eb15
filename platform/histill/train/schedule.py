"""The optimizer and its learning-rate schedule."""

import math
from collections.abc import Sequence

import torch
from timm.optim import Muon
from torch import nn

from histill.config.runs import Optimizer


def make_optimizer(
    depths: Sequence[Sequence[nn.Parameter]], config: Optimizer, layer_decay: float = 1.0
) -> torch.optim.Optimizer:
    """The optimizer of parameters ordered from stem to head; norms, biases and other vectors get no weight decay.

    A group's `lr_scale` is `layer_decay` to the power of its distance from the head.
    """
    groups = [
        {"params": chosen, "weight_decay": decay, "lr_scale": layer_decay ** (len(depths) - 1 - depth)}
        for depth, parameters in enumerate(depths)
        for matrices, decay in ((True, config.weight_decay), (False, 0.0))
        if (chosen := [one for one in parameters if one.requires_grad and (one.ndim > 1) == matrices])
    ]
    if config.name == "muon":
        return Muon(groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr)


def learning_rate(config: Optimizer, step: int, steps: int) -> float:
    """Learning rate at global `step` of `steps`: linear warm-up to config.lr, then cosine decay to 0."""
    warmup = int(config.warmup * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
