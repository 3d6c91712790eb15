"""A trial: a training run that reports each epoch's metrics and the student's cost to Tune.

It trains on workers of its own, or with `workers.count` 0 in Tune's process for the trial.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from histill.artifacts.model_folder import ModelCard, build, read_card
from histill.cluster.metrics import Job, name_job
from histill.cluster.ray_errors import unwrap_error
from histill.config.runs import RunConfig
from histill.config.search_students import SearchConfig
from histill.models.cost import measure_cost, measure_latency_ms
from histill.search.reports import add_rank, forward_reports, report_checkpoint
from histill.search.space import build_trial_config
from histill.storage.uris import join, path_within
from histill.train.launch import OpenRun, train_run
from histill.train.prepare import prepare_run
from histill.train.run_folder import read_result, run_uri

_LONGEST = 200  # characters of a tracked run's name


def run_of(config: SearchConfig, values: Mapping[str, Any], trial: str) -> RunConfig:
    """The training run of the trial with id `trial` and the drawn `values`."""
    return build_trial_config(config, values, name=trial, runs=join(run_uri(config), "trials"))


def name_trial(trial: str, values: Mapping[str, Any]) -> str:
    """The name of a trial's tracked run: its id and its values, by the last part of their keys."""
    ends = [key.rpartition(".")[2] for key in values]
    keys = [key if ends.count(end) > 1 else end for key, end in zip(values, ends, strict=True)]
    shown = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values.values()]
    name = " ".join([trial, *(f"{key}={value}" for key, value in zip(keys, shown, strict=True))])
    return name[:_LONGEST].replace("'", "")  # quotes would end the name in a search


def run_trial(values: Mapping[str, Any], *, config: SearchConfig, open_run: OpenRun, parent: str | None) -> None:
    """Train with `values`, in a Tune process. An interrupted trial resumes from its checkpoint."""
    from ray import tune

    run = run_of(config, values, tune.get_context().get_trial_id())
    try:
        done = read_result(run)
        if done is not None:  # the sweep was interrupted before Tune recorded it
            card = read_card(done.model, config.storage)
            path = path_within(done.model)
            report = add_rank(done.metrics, quality_of(card))
            tune.report({**report, **_costs(card, config.cost), "checkpoint_path": path})
            return
        spec = prepare_run(run)
        costs = _costs(spec.card, config.cost)
        train = partial(
            train_run,
            spec,
            open_run,
            parent=parent,
            show=False,
            claims=False,
            figures={f"workload/{name}": value for name, value in costs.items()},
            title=name_trial(run.name, values),
        )
        with name_job(Job(config.kind, config.name, trial=run.name)):
            if run.workers.in_process:
                train(on_report=partial(report_checkpoint, costs, quality_of(spec.card)))
            else:
                train(callbacks=[forward_reports(costs, quality_of(spec.card))])
    except Exception as error:
        known = unwrap_error(error)
        if known is None:
            raise
        raise known from None  # Ray's wrapper exceptions do not survive Tune


def _costs(card: ModelCard, asked: str) -> dict[str, float]:
    """The student's costs by the names of SearchConfig.cost; latency only if `asked`, since measuring takes time."""
    model = build(card)
    costs = {"gmacs": measure_cost(model, card.size_px).macs / 1e9}
    return costs | ({"latency_ms": measure_latency_ms(model, card.size_px)} if asked == "latency_ms" else {})


def quality_of(card: ModelCard) -> str:
    """The metric by which trials are compared, by training's name."""
    return f"val_{card.outputs.main_metric}"
