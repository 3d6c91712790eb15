"""The training function of each Ray Train worker."""

import logging
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch

from histill.storage.scratch import make_scratch_folder
from histill.tiles.manifest import read_manifest
from histill.train.build import build_learner, build_streams
from histill.train.checkpoint import checkpoint_name, restore_checkpoint, save_checkpoint
from histill.train.coverage import sum_over_workers
from histill.train.loop import Hooks, train
from histill.train.newest import find_newest_checkpoint, step_of
from histill.train.ray.progress_actor import ProgressLogHandler
from histill.train.snapshot import Snapshot
from histill.train.spec import RunSpec
from histill.train.task_state import gather_task_state, load_task_state
from histill.train.tracker import Tracker


@dataclass(frozen=True)
class Assignment:
    """The settings that every worker receives."""

    spec: RunSpec
    board: Any
    tracker: Tracker | None


def run_worker(assignment: Assignment) -> None:
    """Train, forwarding histill's warnings to the board."""
    handler = ProgressLogHandler(assignment.board)
    logging.getLogger("histill").addHandler(handler)
    try:
        _train(assignment)
    finally:
        logging.getLogger("histill").removeHandler(handler)


def _train(assignment: Assignment) -> None:
    spec = assignment.spec
    config = spec.config
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, int(config.workers.cpus)))
    manifest = read_manifest(config.data.tiles, config.storage)

    learner = build_learner(spec, manifest, ray.train.torch.get_device())
    training, validation = build_streams(spec, manifest, rank, workers)
    tracker, task = assignment.tracker if rank == 0 else None, spec.build_task()

    def record(metrics: dict[str, float]) -> None:
        names = {"loss": "epoch/loss"} | {name: name.replace("_", "/", 1) for name in metrics if _is_figure(name)}
        figures = {new: metrics[name] for name, new in names.items() if name in metrics}
        if tracker is not None and figures:  # of an epoch's end, or of the start
            tracker.metrics(figures, int(metrics["step"]))
            tracker.flush()  # a sweep may stop its trial because of the metrics reported now

    known = ray.train.get_checkpoint()
    checkpoint = _newest(known, rank)
    if checkpoint is None:
        spec.initialize(learner, training)
    else:
        with checkpoint.as_directory() as folder:
            restore_checkpoint(folder, learner)
        load_task_state(task, learner.task_state, rank)
        if rank == 0:
            done = learner.position.epoch * training.steps + learner.position.step
            assignment.board.tell.remote(f"resuming from step {done} with {workers} worker{'s' * (workers > 1)}")
        metrics = checkpoint.get_metadata()
        record(metrics)  # the process that saved the checkpoint may have died before sending these
        if checkpoint is not known:  # report it to Ray without another upload
            mode = ray.train.CheckpointUploadMode.NO_UPLOAD
            ray.train.report(metrics, checkpoint if rank == 0 else None, checkpoint_upload_mode=mode)

    def show(snapshot: Snapshot) -> None:
        if rank == 0:
            assignment.board.show.remote(snapshot)
        if tracker is not None:
            values = {"train/loss": snapshot.loss, "lr": snapshot.lr, "tiles_per_s": snapshot.tiles_per_s}
            parts = {f"train/{name}": value for name, value in snapshot.parts.items()}
            tracker.metrics(values | parts | {"data_wait": snapshot.data_wait}, snapshot.step)

    def save(metrics: dict[str, float]) -> None:
        record(metrics)
        learner.task_state = gather_task_state(task, rank, workers)
        if rank != 0:
            ray.train.report(metrics)
            return
        folder = make_scratch_folder()  # Ray uploads it during the next steps, then removes it
        save_checkpoint(folder, learner, spec.card)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        checkpoint.set_metadata(metrics)
        ray.train.report(
            metrics,
            checkpoint,
            checkpoint_dir_name=checkpoint_name(int(metrics["step"])),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )

    def leaving() -> bool:
        return ray.train.get_preemption_info() is not None

    # the loop averages batch-norm statistics over the workers; DDP would broadcast those of the first
    parallel = ray.train.torch.prepare_model(learner.model, parallel_strategy_kwargs={"broadcast_buffers": False})
    if config.compile:
        parallel = torch.compile(parallel)
    try:
        train(learner, parallel, task, training, validation, config, Hooks(show, save, leaving))
        if rank == 0 and learner.best is not None:
            step, metric = learner.position.epoch * training.steps, learner.best.metric
            best = f"keeping the best model, of step {learner.best.step}"
            assignment.board.tell.remote(f"ended after step {step}; {best} ({metric} {learner.best.value:.3f})")
    finally:
        if tracker is not None:
            tracker.close()


def _is_figure(name: str) -> bool:
    return name.startswith(("val_", "current_"))


def _newest(known: Any, rank: int) -> Any:
    """The run's newest complete checkpoint, the same on every worker; `known` if Ray's own is the newest."""
    place = ray.train.get_context().get_storage()
    filesystem, folder = place.storage_filesystem, place.experiment_fs_path
    found = find_newest_checkpoint(filesystem, folder) if rank == 0 else None
    step = int(sum_over_workers(torch.tensor(0 if found is None else step_of(found))))  # from worker 0
    if step <= (0 if known is None else step_of(known.path)):
        return known
    return ray.train.Checkpoint(f"{folder}/{checkpoint_name(step)}", filesystem)
