"""The result of a sweep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from histill.search.pareto import TradeOff, pareto_front


@dataclass(frozen=True)
class TrialResult:
    """The outcome of one trial."""

    trial: str
    values: dict[str, Any]
    epochs: int
    quality: float  # the sweep's metric after its last epoch
    costs: dict[str, float]  # gmacs of the student for one tile, and latency_ms if measured
    model: str | None  # URI of its last checkpoint
    error: str | None

    @property
    def counts(self) -> bool:
        """Whether it ended without error, left a model and has a quality; only such trials are compared."""
        return self.error is None and self.model is not None and not math.isnan(self.quality)

    @property
    def trouble(self) -> str | None:
        """Why it does not count; None if it does."""
        return None if self.counts else self.error or "its quality is not a number"


@dataclass(frozen=True)
class Sweep:
    """A finished sweep, its trials best first."""

    run: str
    metric: str  # training's name of the quality metric
    cost: str  # name of the cost
    trials: tuple[TrialResult, ...]
    tracking_run: str | None
    version: str | None = None  # of the registered model, if the best student was registered

    @property
    def uri(self) -> str:
        """Where it is stored; keys of other jobs take the sweep itself, and with it its best student, in its place."""
        return self.run

    @property
    def best(self) -> TrialResult:
        """The trial of the highest quality."""
        return self.trials[0]

    @property
    def points(self) -> list[TradeOff]:
        """The trials that count."""
        return [TradeOff(each.trial, each.quality, each.costs[self.cost]) for each in self.trials if each.counts]

    @property
    def front(self) -> tuple[str, ...]:
        """The trials that no other beats in both quality and cost, cheapest first."""
        return tuple(point.name for point in pareto_front(self.points))

    def rows(self) -> list[dict[str, Any]]:
        """A row for each trial: its values by key, then its outcome."""
        keys = list(dict.fromkeys(key for each in self.trials for key in each.values))
        return [
            {"trial": each.trial}
            | {key: each.values.get(key) for key in keys}
            | {"epochs": each.epochs, self.metric: each.quality if each.model else None}
            | {self.cost: each.costs.get(self.cost), "front": each.trial in self.front, "error": each.trouble}
            for each in self.trials
        ]


def rank_trials(trials: Sequence[TrialResult]) -> tuple[TrialResult, ...]:
    """Sort best first; trials that do not count come last, those with a model before those without."""

    def rank(each: TrialResult) -> tuple[bool, bool, float, str]:
        return not each.counts, each.model is None, -each.quality if each.counts else 0.0, each.trial

    return tuple(sorted(trials, key=rank))


def metric_label(metric: str) -> str:
    """The display name of a metric or cost such as `val_dice`."""
    known = {"val_dice": "val Dice", "gmacs": "GMACs", "latency_ms": "ms"}
    return known.get(metric, metric.replace("val_", "val ", 1).replace("_", " "))
