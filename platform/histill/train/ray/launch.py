"""Train a checked run to its end on Ray Train."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from histill.cluster.ray_logging import is_verbose
from histill.cluster.signals import keep_on_interrupt
from histill.config.base import Strict
from histill.config.common import Storage, Tracking, WorkerGroup
from histill.storage.retrying import retrying_filesystem
from histill.storage.uris import join, uri_like
from histill.train.claim import hold_claim
from histill.train.newest import drop_broken_state
from histill.train.ray.progress_actor import make_progress_actor, show_progress
from histill.train.run_folder import check_same_inputs, open_record, remove_orphans, run_uri, save_record, write_result
from histill.train.tracker import close_on_error
from histill.train.validation_warnings import doubt_validation

if TYPE_CHECKING:
    from histill.train.spec import RunSpec


_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_POLL_INTERVAL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
_LOOK_FOR_NODES_S = 30.0  # an elastic run that grows restarts from its last checkpoint
UNSENT = "_unsent"  # folder next to the run folders, whose names cannot start with an underscore


class OpenRun(Protocol):
    """Starts or resumes a tracked run; implemented by the registry's `open_run`."""

    def __call__(
        self,
        tracking: Tracking,
        *,
        name: str,
        kind: str,
        config: Strict,
        run_id: str | None,
        parent: str | None = None,
        unsent: str | None = None,
        storage: Storage = ...,
    ) -> Any:
        """Return a tracker with a `run_id`, or None when nothing is tracked.

        Metrics that an unreachable server missed are spooled to the folder `unsent` of `storage`.
        """
        ...


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    run: str  # URI of the run's folder
    model: str  # URI of the final model folder
    metrics: dict[str, float]
    tracking_run: str | None


def train_run(
    spec: "RunSpec",
    open_run: OpenRun,
    *,
    parent: str | None = None,
    callbacks: Sequence[Any] = (),
    show: bool = True,
    claims: bool = True,
    figures: Mapping[str, float] = MappingProxyType({}),
) -> Trained:
    """Train on the connected cluster; a run of the same name resumes from its newest checkpoint.

    `figures` are values known before training, logged with the run's metrics. Without `claims` the caller ensures that
    no other job works on the run.

    Raises InputError when the run is finished, has another configuration, or is claimed by another job; HistillError
    and Ray's TrainingFailedError when the run cannot continue; Interrupted when a signal ends it.
    """
    config = spec.config
    held = hold_claim(run_uri(config), config.storage) if claims else nullcontext()
    with held, keep_on_interrupt("the newest checkpoint stays"):
        return _train_run(spec, open_run, parent, callbacks, show, figures)


def _train_run(
    spec: "RunSpec",
    open_run: OpenRun,
    parent: str | None,
    callbacks: Sequence[Any],
    show: bool,
    figures: Mapping[str, float],
) -> Trained:
    config = spec.config
    record = open_record(config)
    check_same_inputs(config, record, spec.inputs)  # a previous job may have written the record meanwhile
    tracker = open_run(
        config.tracking,
        name=config.name,
        kind=config.kind,
        config=config,
        run_id=record.tracking_run,
        parent=parent,
        unsent=join(config.runs, UNSENT),
        storage=config.storage,
    )
    # a trial is closed by its sweep, which knows whether it failed or was stopped early
    with close_on_error(tracker if parent is None else None, run_uri(config)):
        run_id = tracker.run_id if tracker else None
        save_record(config, record.model_copy(update={"tracking_run": run_id, "inputs": spec.inputs}))
        if tracker and figures:
            tracker.metrics(figures, 0)
            tracker.close()  # send now: a trial that is stopped early has no time to
        model, metrics = _fit(spec, tracker, callbacks, show)
        if tracker:
            tracker.finish("FINISHED")
        write_result(config, model, metrics)  # last: from now on the name is refused
    if show and (doubt := doubt_validation(config.name, metrics)):
        print(f"warning: {doubt}", file=sys.stderr, flush=True)
    return Trained(run_uri(config), model, metrics, run_id)


def _fit(spec: "RunSpec", tracker: Any, callbacks: Sequence[Any], show: bool) -> tuple[str, dict[str, float]]:
    """Run Ray Train and return the final model folder and the metrics."""
    import ray.train

    from histill.train.ray.fail_fast import FailFast
    from histill.train.ray.trainer import Trainer

    config, workers = spec.config, spec.config.workers
    filesystem, path = retrying_filesystem(config.runs, config.storage)
    folder = join(path, config.name)
    if drop_broken_state(filesystem, folder, ray.__version__):
        print(
            f"{config.name}: no checkpoint in {run_uri(config)} is complete; the run starts over",
            file=sys.stderr,
        )
    board = make_progress_actor()
    trainer = Trainer(
        _work,
        train_loop_config={"assignment": ray.put((spec, board, tracker))},
        scaling_config=ray.train.ScalingConfig(
            num_workers=(workers.fewest, workers.most) if workers.fewest < workers.most else workers.most,
            elastic_resize_monitor_interval_s=_LOOK_FOR_NODES_S,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name=config.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[*callbacks, FailFast()],
            logging_config=ray.train.LoggingConfig(log_level="INFO" if is_verbose() else "CRITICAL"),
        ),
    )
    try:
        with show_progress(board, config.name) if show else nullcontext(), _train_settings(workers):
            result = trainer.fit()
    finally:
        ray.kill(board)
    model = uri_like(config.runs, result.checkpoint.path)
    metrics = {key: float(value) for key, value in result.metrics.items() if isinstance(value, int | float)}
    kept = {os.path.basename(checkpoint.path) for checkpoint, _ in result.best_checkpoints or []}
    remove_orphans(filesystem, folder, kept)
    return model, metrics


@contextmanager
def _train_settings(workers: WorkerGroup) -> Iterator[None]:
    """Set what Ray Train reads from the environment, unless the user has.

    A fixed-size group waits for its nodes; an elastic one tries for its previous size briefly and then shrinks. Reports
    are read twice a second: a worker that reports waits until its last report was read, by default for up to 2 s, which
    is most of a short epoch.
    """
    settings = {_START_TIMEOUT: "300" if workers.fewest == workers.most else "15", _POLL_INTERVAL: "0.5"}
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _work(settings: dict[str, Any]) -> None:
    """Run a worker. Imports inside, because Ray Train's controller loads this function but not torch."""
    import ray

    from histill.train.ray.worker import Assignment, run_worker

    run_worker(Assignment(*ray.get(settings["assignment"])))
