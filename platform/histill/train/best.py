"""Keep the best model of a run by its validations, and say when to stop looking further."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from histill.storage.records import Record


class BestRecord(Record):
    """What is known of the best model beside its weights."""

    noun: ClassVar[str] = "the record of a run's best model"
    remedy: ClassVar[str] = "remove that checkpoint, so that the run resumes from the one before"

    step: int
    misses: int
    metrics: dict[str, float | None]  # null for nan


@dataclass
class Best:
    """The best model so far; the same on every worker."""

    metric: str  # the larger the better
    weights: dict[str, torch.Tensor] = field(default_factory=dict)  # on the CPU; empty before the first validation
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0  # global, after which it was validated
    misses: int = 0  # validations since then

    def offer(self, model: nn.Module, metrics: dict[str, float], step: int) -> None:
        """Take `model` for the best unless an earlier one was better; a metric that is not a number is the worst."""
        if self.weights and self._rank(metrics) < self._rank(self.metrics):
            self.misses += 1
            return
        self.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        self.metrics, self.step, self.misses = dict(metrics), step, 0

    @property
    def value(self) -> float:
        """Its metric, nan before the first validation."""
        return self.metrics.get(self.metric, math.nan)

    def is_final(self, patience: int | None) -> bool:
        """Whether so many validations have found no better one."""
        return patience is not None and self.misses >= patience

    @property
    def record(self) -> BestRecord:
        known = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        return BestRecord(step=self.step, misses=self.misses, metrics=known)

    def _rank(self, metrics: dict[str, float]) -> float:
        value = metrics.get(self.metric, math.nan)
        return value if math.isfinite(value) else -math.inf

    def restore(self, record: BestRecord, weights: dict[str, torch.Tensor]) -> None:
        """Continue from a checkpoint's."""
        self.metrics = {name: math.nan if value is None else value for name, value in record.metrics.items()}
        self.step, self.misses, self.weights = record.step, record.misses, weights


def report(figures: dict[str, float], model: nn.Module, best: Best | None, *, step: int) -> dict[str, float]:
    """The `figures` of validating `model` after the global `step`, as they are reported with its checkpoint.

    `val_...` are those of the model that is kept: where that is the best, `current_...` are those of this one.
    """
    if best is None:
        return {f"val_{name}": value for name, value in figures.items()}
    best.offer(model, figures, step)
    kept = {f"val_{name}": value for name, value in best.metrics.items()}
    return kept | {f"current_{name}": value for name, value in figures.items()} | {"best_step": float(best.step)}
