"""A trial's reports to Tune, a module without torch and timm, since Ray Train's controller loads it."""

import math
from collections.abc import Mapping
from typing import Any

RANKED = "ranked"  # the metric that Tune ranks trials by: the quality, or WORST
WORST = -1.0  # below every quality; replaces nan, which neither ASHA nor Optuna can rank


def add_rank(metrics: Mapping[str, Any], quality: str) -> dict[str, Any]:
    """Add the metric that Tune ranks by to an epoch's report `metrics`; the quality becomes finite or nan."""
    value = metrics.get(quality)
    known = value is not None and math.isfinite(value)
    return {**metrics, quality: value if known else math.nan, RANKED: value if known else WORST}


def report_checkpoint(costs: Mapping[str, float], quality: str, metrics: Mapping[str, float], path: str) -> None:
    """Report an epoch's metrics and its checkpoint to Tune, from the trial's own process."""
    from ray import tune

    if quality in metrics:  # not for a mid-epoch checkpoint
        tune.report({**add_rank(metrics, quality), **costs, "checkpoint_path": path})


def forward_reports(costs: Mapping[str, float], quality: str) -> Any:
    """A callback of Ray Train that forwards a run's epoch reports to Tune."""
    from ray.tune.integration.ray_train import TuneReportCallback

    class WithCosts(TuneReportCallback):
        """Adds the costs and the ranked metric to each report."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if quality in metrics[0]:  # not for a mid-epoch checkpoint before a preemption
                super().after_report(run_context, [{**add_rank(metrics[0], quality), **costs}], checkpoint)

    return WithCosts()
