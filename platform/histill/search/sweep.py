"""Run a sweep: Ray Tune draws trials, each trial is a training run on Ray Train, and poor ones are stopped early."""

import contextlib
import io
import logging
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from histill.cluster.metrics import Job, name_job
from histill.cluster.ray_errors import unwrap_error
from histill.cluster.ray_logging import is_verbose
from histill.cluster.signals import keep_handlers, keep_on_interrupt, raise_if_interrupted
from histill.config.search_students import SearchConfig
from histill.errors import HistillError, InputError
from histill.search.capacity import count_fitting_trials, max_concurrent_trials, trial_resources
from histill.search.pareto_asha import Rungs, pareto_scheduler
from histill.search.pictures import draw_front, draw_study
from histill.search.progress import sweep_progress
from histill.search.reports import RANKED
from histill.search.results import Sweep, TrialResult, rank_trials
from histill.search.saved_state import can_resume
from histill.search.space import check_space, list_edges, suggest_values
from histill.search.trial import quality_of, run_of, run_trial
from histill.storage.control import probe, write_json
from histill.storage.retrying import retrying_filesystem
from histill.storage.uris import join, uri_like
from histill.train.claim import hold_claim
from histill.train.inputs import resolve
from histill.train.launch import OpenRun
from histill.train.prepare import check_run
from histill.train.run_folder import check_same_inputs, open_record, run_uri, save_record, write_result
from histill.train.tracker import DataUse, close_on_error

RECORD_NAME = "sweep.json"
_SAVE_EVERY_S = "1"  # interval of saving Tune's state; trials drawn since the last save are drawn again on resume


@dataclass(frozen=True)
class PreparedSweep:
    """A checked sweep."""

    config: SearchConfig
    metric: str  # training's name of the quality metric
    inputs: dict[str, str] = field(default_factory=dict)  # digests, as for a run


class Register(Protocol):
    """Registers the best student as a version of a registered model."""

    def __call__(self, model: str, name: str, record: dict[str, Any]) -> str:
        """Register `model` as `name` and return the version number."""
        ...


def prepare_sweep(config: SearchConfig) -> PreparedSweep:
    """Check the sweep and its trials before Ray starts. Raises InputError."""
    check_space(config)
    probe(config.runs, config.storage)
    record = open_record(config)
    known: dict[Any, Any] = {}  # inputs shared by trials are read once
    base = run_of(config, {}, "check")
    spec = check_run(base, resolve(base, known))
    for key, values in list_edges(config):
        trial = run_of(config, values, "check")
        try:
            check_run(trial, resolve(trial, known))
        except InputError as error:
            raise InputError(f"space.{key}: {error}", code=error.code) from None
    check_same_inputs(config, record, spec.inputs)
    return PreparedSweep(config, quality_of(spec.card), spec.inputs)


def run_sweep(prepared: PreparedSweep, open_run: OpenRun, register: Register | None = None) -> Sweep:
    """Run the trials on the connected cluster and mark the sweep finished with the best one's model.

    An interrupted sweep of the same name resumes its trials. `register` is called if the configuration wants the best
    student registered. Raises InputError when not even one trial fits the cluster, or another job works on the sweep;
    HistillError (InputError if that was the cause) when every trial failed; Interrupted when a signal ends it.
    """
    config = prepared.config
    with (
        name_job(Job(config.kind, config.name)),
        hold_claim(run_uri(config), config.storage),
        keep_on_interrupt("the trials' newest checkpoints stay"),
    ):
        return _run_sweep(prepared, open_run, register)


def _run_sweep(prepared: PreparedSweep, open_run: OpenRun, register: Register | None) -> Sweep:
    config = prepared.config
    record = open_record(config)
    check_same_inputs(config, record, prepared.inputs)
    tracker = open_run(
        config.tracking,
        name=config.name,
        kind=config.kind,
        config=config,
        run_id=record.tracking_run,
        note=_describe(config),
        data=[DataUse(config.data.tiles, prepared.inputs["data.tiles"], "training")],
    )
    parent = tracker.run_id if tracker else None
    with close_on_error(tracker, run_uri(config)):
        save_record(config, record.model_copy(update={"tracking_run": parent, "inputs": prepared.inputs}))
        if tracker:  # trials run in other processes, which may lack this one's environment
            tracking = config.tracking.model_copy(update={"uri": tracker.uri})
            prepared = replace(prepared, config=config.model_copy(update={"tracking": tracking}))
        sweep = Sweep(run_uri(config), prepared.metric, config.cost, _trials(prepared, open_run, parent), parent)
        model = sweep.best.model
        assert model is not None
        if config.register_best is not None and register is not None:
            version = register(model, config.register_best, _record(config, sweep))
            sweep = replace(sweep, version=version)
        write_json(join(sweep.run, RECORD_NAME), _record(config, sweep), config.storage)
        if tracker:
            _track(tracker, config, sweep)
            tracker.finish("FINISHED")
        write_result(config, model, {sweep.metric: sweep.best.quality})  # last: from now on the name is refused
    return sweep


def _describe(config: SearchConfig) -> str:
    """The tracked run's description, in Markdown."""
    lines = [f"A sweep of {config.trials} trials of `{config.job}` on tiles of `{config.data.tiles}`.", ""]
    lines += [f"- folder of the sweep, which stands for its best trial: `{run_uri(config)}`"]
    lines += [f"- drawn: {', '.join(f'`{key}`' for key in config.space)}"]
    return "\n".join(lines)


def _track(tracker: Any, config: SearchConfig, sweep: Sweep) -> None:
    """Log the sweep's results to its tracked run."""
    tracker.metrics({f"best_{sweep.metric}": sweep.best.quality}, 0)
    tracker.table("trials", sweep.rows())
    for name, picture in {"front": draw_front(sweep), **draw_study(config, sweep)}.items():
        tracker.picture(name, picture)


def _record(config: SearchConfig, sweep: Sweep) -> dict[str, Any]:
    """The sweep as JSON: its space and its results."""
    space = {key: draw.model_dump(mode="json", exclude_none=True) for key, draw in config.space.items()}
    return asdict(sweep) | {"front": list(sweep.front), "space": space, "sampler": config.sampler, "seed": config.seed}


def _trials(prepared: PreparedSweep, open_run: OpenRun, parent: str | None) -> tuple[TrialResult, ...]:
    """Run the trials, or the remaining ones of an interrupted sweep; returns all, best first."""
    from ray import tune

    config = prepared.config
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", _SAVE_EVERY_S)
    filesystem, path = retrying_filesystem(config.runs, config.storage)  # writes Tune's files atomically
    sweep_path = join(path, config.name, "tune")
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, config=config, open_run=open_run, parent=parent), trial_resources(config)
    )
    if can_resume(filesystem, sweep_path, join(run_uri(config), "tune")):
        tuner = _restore_tuner(sweep_path, trainable, filesystem, config)
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=_tune_config(prepared),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=join(path, config.name),
                storage_filesystem=filesystem,
                verbose=0,
                callbacks=[sweep_progress(config, prepared.metric, open_run)],
            ),
        )
    if not is_verbose():
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # trial errors are in the table
    quiet = contextlib.redirect_stdout(sys.stderr if is_verbose() else io.StringIO())  # stdout is for the JSON line
    with keep_handlers(), quiet:
        results = list(tuner.fit())
    raise_if_interrupted()
    trials = rank_trials([_result(prepared, result) for result in results])
    if not trials[0].counts:
        known = next(filter(None, (unwrap_error(result.error) for result in results)), None)
        errors = [trial.error for trial in trials if trial.error]
        if len(errors) == len(trials):
            said = f"every trial of {run_uri(config)} failed; the first error: {errors[0]}"
            raise type(known)(said, code=known.code) if known else HistillError(said, code="sweep-without-result")
        raise HistillError(
            f"no trial of {run_uri(config)} reached a {prepared.metric} that is a number; check the split "
            f"{config.data.val!r}, and narrow the space where training is not stable.",
            code="sweep-without-result",
        )
    return trials


def _restore_tuner(sweep_path: str, trainable: Any, filesystem: Any, config: SearchConfig) -> Any:
    """Restore Tune's saved state. Raises HistillError when it was saved by a version of histill with other classes."""
    from ray import tune

    try:
        return tune.Tuner.restore(sweep_path, trainable, resume_errored=True, storage_filesystem=filesystem)
    except (ImportError, AttributeError) as error:
        raise HistillError(
            f"Tune's state in {join(run_uri(config), 'tune')} was saved by another version of histill ({error}); "
            "remove that folder and run the same command again: new trials are drawn, and the trained ones are kept "
            "next to it.",
            code="sweep-state-unusable",
        ) from None


def _tune_config(prepared: PreparedSweep) -> Any:
    import ray
    from ray import tune

    config = prepared.config
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    at_once, fit = max_concurrent_trials(config, nodes), count_fitting_trials(config, nodes)
    if fit < at_once:
        text = f"{config.name}: {at_once} trials are started at once, the nodes that are up have room for {fit}"
        print(text, file=sys.stderr, flush=True)
    return tune.TuneConfig(
        num_samples=config.trials,
        max_concurrent_trials=at_once,
        search_alg=make_searcher(config, RANKED),
        scheduler=_scheduler(prepared),
        trial_dirname_creator=lambda trial: trial.trial_id,
        **({} if config.objective == "front" else {"metric": RANKED, "mode": "max"}),
    )


def make_searcher(config: SearchConfig, metric: str) -> Any:
    """Optuna as a Tune searcher; with the objective "front" it optimizes quality and cost together."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kind = optuna.samplers.TPESampler if config.sampler == "tpe" else optuna.samplers.RandomSampler

    class Searcher(OptunaSearch):
        """Reports only final results to Optuna: intermediate ones serve its pruners, and here Tune stops trials.

        It ignores trials that it does not know, left by a job that was killed between two files of its state.
        """

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            pass

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            if trial_id in self._ot_trials:
                super().on_trial_complete(trial_id, result, error)

    space = partial(suggest_values, dict(config.space))  # Tune pickles it, to resume later
    metrics, modes = ([metric, config.cost], ["max", "min"]) if config.objective == "front" else (metric, "max")
    return Searcher(space=space, metric=metrics, mode=modes, sampler=kind(seed=config.seed))


def _scheduler(prepared: PreparedSweep) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    config = prepared.config
    epochs = config.optimizer.epochs
    grace = min(config.grace_epochs, epochs)
    if config.scheduler == "none" or grace == epochs:
        return FIFOScheduler()
    if config.objective == "front":
        return pareto_scheduler(Rungs(grace, epochs, config.reduction), epochs, RANKED, config.cost)
    return ASHAScheduler(
        time_attr="epochs",
        max_t=epochs - 1,  # the last rung must be before the end, or a trial that has only to finish would be stopped
        grace_period=grace,
        reduction_factor=config.reduction,
        stop_last_trials=False,  # a trial that got this far ends by itself and marks its run finished
    )


def _result(prepared: PreparedSweep, result: Any) -> TrialResult:
    metrics = result.metrics or {}
    path = metrics.get("checkpoint_path")
    return TrialResult(
        trial=metrics.get("trial_id", "?"),
        values=dict(result.config or {}),
        epochs=int(metrics.get("epochs", 0)),
        quality=float(metrics.get(prepared.metric, float("nan"))),
        costs={name: float(metrics[name]) for name in ("gmacs", "latency_ms") if name in metrics},
        model=None if path is None else uri_like(prepared.config.runs, path),
        error=None if result.error is None else _said(result.error),
    )


def _said(error: Exception) -> str:
    return str(unwrap_error(error) or str(error).strip().splitlines()[-1])
