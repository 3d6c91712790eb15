"""Tell a user how a run learns: each validation in one line, beside the best one so far."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from histill.evaluate.readable import format_figure, name_figure


@dataclass
class EpochSummary:
    """The validations that this process knows of: its own, and those of the checkpoint it started from."""

    metric: str  # the one that models are compared by, without its prefix `val_`
    epochs: int  # of the whole run
    _values: dict[int, float] = field(default_factory=dict)  # by epoch, counted from 1; 0: before the first step
    _newest: int | None = None
    _known_from: int = 0  # earlier validations are forgotten

    def resume(self, metrics: Mapping[str, float], best: tuple[int, float] | None = None) -> None:
        """Continue from the checkpoint that was reported with `metrics`, and the `best` epoch, if that is kept."""
        if best is not None:
            self._values[best[0]] = best[1]
        else:
            self._known_from = int(metrics["epochs"])
        if (value := self._value(metrics)) is not None:
            self._newest = int(metrics["epochs"])
            self._values[self._newest] = value

    def add(self, metrics: Mapping[str, float]) -> str | None:
        """Note what was reported with a checkpoint; returns the line of a validation, None where there was none."""
        if (value := self._value(metrics)) is None:
            return None
        self._newest = epoch = int(metrics["epochs"])
        self._values[epoch] = value
        loss = f"loss {metrics['loss']:.4f}, " if "loss" in metrics else ""
        when = f"epoch {epoch} of {self.epochs}" if epoch else "before the first step"
        rank = f", {self._compare()}" if len(self._values) > 1 else ""
        return f"{when}: {loss}{self._show(epoch)}{rank}"

    @property
    def latest(self) -> str:
        """The newest validation in a few words; empty before the first."""
        if self._newest is None:
            return ""
        best = self._best
        return self._show(self._newest) + (f" (best {self._figure(best)})" if best != self._newest else "")

    def close(self, *, keep_best: bool) -> str | None:
        """What to say at the end about the model that is kept; None where that goes without saying."""
        if self._newest is None or len(self._values) < 2:
            return None
        best = self._best
        of = f"of epoch {best}" if best else "from before the first step"
        if keep_best:
            return f"ended after epoch {self._newest}; keeping the model {of}, the best: {self._show(best)}"
        if best == self._newest:
            return None
        return (
            f"ended with {self._show(self._newest)}; the model {of} had {self._figure(best)}, and "
            "validation.keep=best would have kept it"
        )

    @property
    def _best(self) -> int:
        """The best epoch, the latest of equal ones, as `Best` has it; a value that is no number is the worst."""
        ranks = {epoch: value if math.isfinite(value) else -math.inf for epoch, value in self._values.items()}
        return max(ranks, key=lambda epoch: (ranks[epoch], epoch))

    def _compare(self) -> str:
        best, since = self._best, f"since epoch {self._known_from}" if self._known_from else "so far"
        if best == self._newest:
            return f"the best {since}"
        return f"best {since} {self._figure(best)} {f'in epoch {best}' if best else 'before the first step'}"

    def _value(self, metrics: Mapping[str, float]) -> float | None:
        return metrics.get(f"current_{self.metric}", metrics.get(f"val_{self.metric}"))

    def _show(self, epoch: int) -> str:
        return f"{name_figure(self.metric)} {self._figure(epoch)}"

    def _figure(self, epoch: int) -> str:
        return format_figure(self._values[epoch])
