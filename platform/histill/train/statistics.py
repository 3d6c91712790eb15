"""The running statistics of batch norms: which tiles enter them, and that all workers keep the same."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from histill.train.coverage import sum_over_workers

_STATISTICS = ("running_mean", "running_var")


def freeze_modules(model: nn.Module) -> None:
    """Leave modules that learn nothing in evaluation mode, or their statistics would drift and their paths drop."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


@contextlib.contextmanager
def freeze_statistics(model: nn.Module, *, rest: bool) -> Iterator[None]:
    """While `rest`, what goes through `model` leaves no trace in its running statistics."""
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
    """Replace the running statistics of `model` by their mean over `workers`, which each must ask for.

    They are linear in those of the batches, so it makes no difference how often this is done, but for what
    `freeze_statistics` has kept out of one worker's.
    """
    kept = [each for name, each in model.named_buffers() if name.rpartition(".")[2] in _STATISTICS]
    if workers == 1 or not kept:
        return
    mean = sum_over_workers(torch.cat([each.flatten() for each in kept])) / workers
    for each, part in zip(kept, mean.split([each.numel() for each in kept]), strict=True):
        each.copy_(part.view_as(each))
