"""The result of a sweep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from histill.search.pareto import TradeOff, pareto_front


@dataclass(frozen=True)
class TrialResult:
    """What became of one trial."""

    trial: str
    values: dict[str, Any]
    epochs: int
    quality: float  # the sweep's metric after its last epoch
    costs: dict[str, float]  # gmacs of its student for one tile, and latency_ms if it was measured
    model: str | None  # URI of its last checkpoint
    error: str | None

    @property
    def counts(self) -> bool:
        """Whether it came to its end, left a model and has a quality; only such a trial is compared with others."""
        return self.error is None and self.model is not None and not math.isnan(self.quality)

    @property
    def trouble(self) -> str | None:
        """Why it does not count."""
        return None if self.counts else self.error or "its quality is not a number"


@dataclass(frozen=True)
class Sweep:
    """A finished sweep, its trials best first."""

    run: str
    metric: str  # what quality is, as training reports it
    cost: str  # what it stands against
    trials: tuple[TrialResult, ...]
    tracking_run: str | None
    version: str | None = None  # of the registered model that the best student has become

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
        """A row for each trial: its values by key, then what came of it."""
        keys = list(dict.fromkeys(key for each in self.trials for key in each.values))
        return [
            {"trial": each.trial}
            | {key: each.values.get(key) for key in keys}
            | {"epochs": each.epochs, self.metric: each.quality if each.model else None}
            | {self.cost: each.costs.get(self.cost), "front": each.trial in self.front, "error": each.trouble}
            for each in self.trials
        ]


def rank_trials(trials: Sequence[TrialResult]) -> tuple[TrialResult, ...]:
    """Best first; those that do not count last, those with a model before the others."""

    def rank(each: TrialResult) -> tuple[bool, bool, float, str]:
        return not each.counts, each.model is None, -each.quality if each.counts else 0.0, each.trial

    return tuple(sorted(trials, key=rank))


def metric_label(metric: str) -> str:
    """A metric or cost, `val_dice`, as it is shown to people."""
    known = {"val_dice": "val Dice", "gmacs": "GMACs", "latency_ms": "ms"}
    return known.get(metric, metric.replace("val_", "val ", 1).replace("_", " "))
