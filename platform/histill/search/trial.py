"""One trial: a training run that reports each epoch, and what its student costs, to Tune."""

import math
from collections.abc import Mapping
from typing import Any

from histill.artifacts.model_folder import ModelCard, build, read_card
from histill.cluster.ray_errors import unwrap_error
from histill.config.runs import RunConfig
from histill.config.search_students import SearchConfig
from histill.models.cost import measure_cost, measure_latency_ms
from histill.search.space import build_trial_config
from histill.storage.uris import join, path_within
from histill.train.prepare import prepare_run
from histill.train.ray.launch import OpenRun, train_run
from histill.train.run_folder import read_result, run_uri

RANKED = "ranked"  # what Tune ranks trials by: the quality, or
WORST = -1.0  # below every quality, where that is not a number; neither ASHA nor Optuna can rank one


def run_of(config: SearchConfig, values: Mapping[str, Any], trial: str) -> RunConfig:
    """The training run of the trial with the id `trial` that has drawn `values`."""
    return build_trial_config(config, values, name=trial, runs=join(run_uri(config), "trials"))


def run_trial(values: Mapping[str, Any], *, config: SearchConfig, open_run: OpenRun, parent: str | None) -> None:
    """Train with `values`, in a process of Tune's. A trial that was interrupted resumes from its checkpoint."""
    from ray import tune

    run = run_of(config, values, tune.get_context().get_trial_id())
    try:
        done = read_result(run)
        if done is not None:  # the sweep was interrupted before Tune had noted it
            card = read_card(done.model, config.storage)
            path = path_within(done.model)
            report = add_rank(done.metrics, quality_of(card))
            tune.report({**report, **_costs(card, config.cost), "checkpoint_path": path})
            return
        spec = prepare_run(run)
        costs = _costs(spec.card, config.cost)
        to_tune = _to_tune(costs, quality_of(spec.card))
        train_run(spec, open_run, parent=parent, callbacks=[to_tune], show=False, claims=False, figures=costs)
    except Exception as error:
        known = unwrap_error(error)
        if known is None:
            raise
        raise known from None  # what Ray wraps around it does not survive Tune


def _costs(card: ModelCard, asked: str) -> dict[str, float]:
    """What the student costs, by the names of SearchConfig.cost; latency, which takes time to measure, if `asked`."""
    model = build(card)
    costs = {"gmacs": measure_cost(model, card.size_px).macs / 1e9}
    return costs | ({"latency_ms": measure_latency_ms(model, card.size_px)} if asked == "latency_ms" else {})


def quality_of(card: ModelCard) -> str:
    """The metric by which trials are compared, as training reports it."""
    return f"val_{card.outputs.main_metric}"


def add_rank(metrics: Mapping[str, Any], quality: str) -> dict[str, Any]:
    """The report `metrics` of an epoch's end with what Tune ranks by; the quality is a number, or nan."""
    value = metrics.get(quality)
    known = value is not None and math.isfinite(value)
    return {**metrics, quality: value if known else math.nan, RANKED: value if known else WORST}


def _to_tune(costs: Mapping[str, float], quality: str) -> Any:
    """A callback of the training run that hands the reports of its epochs on."""
    from ray.tune.integration.ray_train import TuneReportCallback

    class WithCosts(TuneReportCallback):
        """Adds the costs, and what is ranked, to each."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if quality in metrics[0]:  # not of a checkpoint that a leaving node has hurried
                super().after_report(run_context, [{**add_rank(metrics[0], quality), **costs}], checkpoint)

    return WithCosts()
