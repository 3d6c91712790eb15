"""Train a run on Ray Train: its resources, its workers, its checkpoints."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from histill.cluster.metrics import current_job, name_job
from histill.cluster.ray_logging import is_verbose
from histill.config.common import WorkerGroup
from histill.storage.retrying import retrying_filesystem
from histill.storage.uris import join, uri_like
from histill.train.newest import drop_broken_state
from histill.train.ray.progress_actor import make_progress_actor, show_progress
from histill.train.run_folder import remove_orphans, run_uri

if TYPE_CHECKING:
    from histill.train.spec import RunSpec


_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_POLL_INTERVAL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
_LOOK_FOR_NODES_S = 30.0  # an elastic run that grows restarts from its last checkpoint


def fit(spec: "RunSpec", tracker: Any, *, callbacks: Sequence[Any], show: bool) -> tuple[str, dict[str, float]]:
    """Train on the connected cluster and return the final model folder and the metrics."""
    import ray.train

    from histill.train.ray.fail_fast import FailFast
    from histill.train.ray.note_checkpoints import NoteCheckpoints
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
        train_loop_config={"assignment": ray.put((spec, tracker, board, current_job()))},
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
            callbacks=[*callbacks, FailFast(), NoteCheckpoints(board)],
            logging_config=ray.train.LoggingConfig(log_level="INFO" if is_verbose() else "CRITICAL"),
        ),
    )
    try:
        with show_progress(board, config.name, quiet=not show), _train_settings(workers):
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
    import torch

    from histill.train.ray.session import RaySession
    from histill.train.worker import run_worker

    spec, tracker, board, job = ray.get(settings["assignment"])
    torch.set_num_threads(max(1, int(spec.config.workers.cpus)))
    with name_job(job):
        run_worker(spec, tracker, RaySession(board))
