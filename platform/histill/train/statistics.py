"""Batch-norm running statistics: exclude batches from them, and keep them equal on all workers."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from histill.train.coverage import sum_over_workers

_STATISTICS = ("running_mean", "running_var")


def freeze_modules(model: nn.Module) -> None:
    """Put modules without trainable parameters into eval mode, so that their statistics and paths stay fixed."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


@contextlib.contextmanager
def freeze_statistics(model: nn.Module, *, rest: bool) -> Iterator[None]:
    """With `rest`, forward passes through `model` inside the block do not update its running statistics."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase)] if rest else []
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def average_statistics(model: nn.Module, workers: int) -> None:
    """Replace the running statistics of `model` by their mean over `workers`; a collective call.

    Running statistics are linear in those of the batches, so it does not matter how often they are averaged, except
    where `freeze_statistics` excluded a batch on one worker only.
    """
    kept = [each for name, each in model.named_buffers() if name.rpartition(".")[2] in _STATISTICS]
    if workers == 1 or not kept:
        return
    mean = sum_over_workers(torch.cat([each.flatten() for each in kept])) / workers
    for each, part in zip(kept, mean.split([each.numel() for each in kept]), strict=True):
        each.copy_(part.view_as(each))
