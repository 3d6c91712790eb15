"""A sweep: Ray Tune draws the trials, each is a training run on Ray Train, ASHA stops the hopeless ones."""

import contextlib
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from histill.artifacts.model_folder import ModelCard, build, read_card
from histill.cluster.failures import known_error
from histill.cluster.quiet import verbose
from histill.config.search import SearchConfig
from histill.errors import HistillError, InputError
from histill.models.cost import measure_cost
from histill.search.front import Point, front, picture
from histill.search.progress import sweep_progress
from histill.search.space import check_space, drawn, trial_config
from histill.storage.filesystems import arrow_filesystem
from histill.storage.uris import is_s3, join
from histill.train.launch import OpenRun, train_run
from histill.train.prepare import prepare_pretraining
from histill.train.run_folder import finish, open_record, run_uri, save_record

METRIC = "val_dice"
KIND = "search_students"
_DRIVER_CPUS = 0.1
_READING_CPUS = 0.5  # left to the tasks that read tiles, without which trials would wait for data for ever


@dataclass(frozen=True)
class TrialResult:
    """What became of one trial."""

    trial: str
    values: dict[str, Any]
    epochs: int
    val_dice: float  # after its last epoch
    model: str | None  # URI of its last checkpoint
    gmacs: float | None  # of its student for one tile, convolutions and linear layers
    error: str | None


@dataclass(frozen=True)
class Sweep:
    """A finished sweep, its trials best first."""

    run: str
    trials: tuple[TrialResult, ...]
    tracking_run: str | None

    @property
    def best(self) -> TrialResult:
        """The trial with the highest validation Dice."""
        return self.trials[0]

    @property
    def front(self) -> tuple[str, ...]:
        """The trials that no other beats in both Dice and GMACs, cheapest first."""
        return tuple(point.name for point in front(points_of(self.trials)))


def points_of(trials: Sequence[TrialResult]) -> list[Point]:
    """The trials that left a model."""
    return [Point(trial.trial, trial.val_dice, trial.gmacs) for trial in trials if trial.gmacs is not None]


def check_sweep(config: SearchConfig) -> None:
    """Refuse before Ray starts what no trial could do. Raises InputError."""
    check_space(config)
    prepare_pretraining(trial_config(config, {}, name="check", runs=join(run_uri(config), "trials")))
    open_record(config, KIND)


def run_sweep(config: SearchConfig, open_run: OpenRun) -> Sweep:
    """Run the trials on the connected cluster and mark the sweep finished with the best one's model.

    The name of an interrupted sweep goes on with its trials. Raises InputError when one trial does not fit the
    cluster, HistillError (InputError where that is why) when every trial failed.
    """
    from ray import tune

    record = open_record(config, KIND)
    tracker = open_run(config.tracking, name=config.name, kind=KIND, config=config, run_id=record.tracking_run)
    parent = tracker.run_id if tracker else None
    save_record(config, record.model_copy(update={"tracking_run": parent}))

    if tracker:  # a trial runs in a process that need not know this one's environment
        tracking = config.tracking.model_copy(update={"uri": tracker.uri})
        config = config.model_copy(update={"tracking": tracking})
    filesystem, path = arrow_filesystem(config.runs, config.storage)
    sweep_path = join(path, config.name, "tune")
    trainable = tune.with_resources(
        tune.with_parameters(_run_trial, config=config, open_run=open_run, parent=parent), {"CPU": _DRIVER_CPUS}
    )
    if tune.Tuner.can_restore(sweep_path, storage_filesystem=filesystem):
        tuner = tune.Tuner.restore(sweep_path, trainable, resume_errored=True, storage_filesystem=filesystem)
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=_tune_config(config),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=join(path, config.name),
                storage_filesystem=filesystem,
                verbose=0,
                callbacks=[sweep_progress(config)],
            ),
        )
    if not verbose():
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial's error stands in the table
    try:
        with contextlib.redirect_stdout(sys.stderr if verbose() else io.StringIO()):  # stdout is the job's JSON line
            results = tuner.fit()
    except BaseException:
        if tracker:
            tracker.finish("FAILED")
        raise
    trials = sorted((_result(config, result) for result in results), key=_rank)
    sweep = Sweep(run_uri(config), tuple(trials), parent)
    if sweep.best.model is None:
        if tracker:
            tracker.finish("FAILED")
        known = next(filter(None, (known_error(result.error) for result in results)), None)
        kind = HistillError if known is None else type(known)
        raise kind(f"every trial of {sweep.run} failed; the first error: {sweep.best.error}")
    finish(config, sweep.best.model, {METRIC: sweep.best.val_dice})
    if tracker:
        tracker.metrics({"best_val_dice": sweep.best.val_dice}, 0)
        tracker.picture("front", picture(points_of(sweep.trials), "validation Dice", "GMACs of one tile"))
        tracker.finish("FINISHED")
    return sweep


def _tune_config(config: SearchConfig) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    epochs = config.optimiser.epochs
    return tune.TuneConfig(
        metric=METRIC,
        mode="max",
        num_samples=config.trials,
        max_concurrent_trials=_concurrent(config),
        search_alg=_searcher(config),
        scheduler=FIFOScheduler()
        if config.scheduler == "none"
        else ASHAScheduler(
            time_attr="epochs",
            max_t=epochs,
            grace_period=min(config.grace_epochs, epochs),
            reduction_factor=config.reduction,
        ),
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


def _searcher(config: SearchConfig) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kind = optuna.samplers.TPESampler if config.sampler == "tpe" else optuna.samplers.RandomSampler
    space = partial(drawn, dict(config.space))  # Tune pickles it, to go on with after a stop
    return OptunaSearch(space=space, metric=METRIC, mode="max", sampler=kind(seed=config.seed))


def _concurrent(config: SearchConfig) -> int:
    """How many trials run at once; nested trainers that together ask for more than there is wait for each other."""
    import ray

    cpus = ray.cluster_resources().get("CPU", 0.0)
    gpus = ray.cluster_resources().get("GPU", 0.0)
    trial_cpus = config.workers.count * config.workers.cpus + _DRIVER_CPUS
    trial_gpus = config.workers.count * config.workers.gpus
    fit = int((cpus - _READING_CPUS) / trial_cpus)
    if trial_gpus:
        fit = min(fit, int(gpus / trial_gpus))
    if fit < 1:
        raise InputError(
            f"one trial takes {trial_cpus:g} CPUs and {trial_gpus:g} GPUs (workers.count x workers.cpus, and gpus) and "
            f"{_READING_CPUS:g} CPUs stay free for reading, but the cluster has {cpus:g} and {gpus:g}; "
            "ask for less per trial."
        )
    return min(fit, config.concurrent or fit, config.trials)


def _run_trial(values: Mapping[str, Any], *, config: SearchConfig, open_run: OpenRun, parent: str | None) -> None:
    """One trial, in Tune's own worker: a training run that reports each epoch to Tune."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    trial = tune.get_context().get_trial_id()
    run = trial_config(config, values, name=trial, runs=join(run_uri(config), "trials"))
    try:
        train_run(prepare_pretraining(run), open_run, parent=parent, callbacks=[TuneReportCallback()], show=False)
    except Exception as error:
        known = known_error(error)
        if known is None:
            raise
        raise known from None  # what Ray wraps around it does not survive Tune


def _result(config: SearchConfig, result: Any) -> TrialResult:
    metrics = result.metrics or {}
    path = metrics.get("checkpoint_path")
    model = None if path is None else ("s3://" if is_s3(config.runs) else "") + path
    return TrialResult(
        trial=metrics.get("trial_id", "?"),
        values=dict(result.config or {}),
        epochs=int(metrics.get("epochs", 0)),
        val_dice=float(metrics.get(METRIC, float("nan"))),
        model=model,
        gmacs=None if model is None else _gmacs(read_card(model, config.storage)),
        error=None if result.error is None else _said(result.error),
    )


def _gmacs(card: ModelCard) -> float:
    return measure_cost(build(card), card.size_px).macs / 1e9


def _said(error: Exception) -> str:
    return str(known_error(error) or str(error).strip().splitlines()[-1])


def _rank(trial: TrialResult) -> tuple[bool, float]:
    return trial.model is None, -trial.val_dice if trial.val_dice == trial.val_dice else 0.0
