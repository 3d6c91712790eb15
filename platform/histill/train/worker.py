"""Train as one worker of a run: restore the newest checkpoint, run the loop, save, track and show what it reports."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import torch

from histill.cluster.metrics import Publisher
from histill.storage.scratch import make_scratch_folder
from histill.tiles.manifest_file import read_manifest
from histill.train.build import build_learner, build_streams
from histill.train.checkpoint import restore_checkpoint, save_checkpoint
from histill.train.epoch_summary import EpochSummary
from histill.train.loop import Hooks, train
from histill.train.progress_line import WarningHandler
from histill.train.session import Session
from histill.train.snapshot import Snapshot
from histill.train.spec import RunSpec
from histill.train.task_state import gather_task_state, load_task_state
from histill.train.tracker import Tracker


def run_worker(spec: RunSpec, tracker: Tracker | None, session: Session) -> None:
    """Train `spec` from its newest checkpoint to its end; only worker 0 uses the tracker.

    Raises InputError for tiles that cannot be used, HistillError when the loss is not finite or a disk is full.
    """
    with _tell_warnings(session), closing(Publisher(rank=str(session.rank))) as publisher:
        _train(spec, tracker if session.rank == 0 else None, session, publisher)


def _train(spec: RunSpec, tracker: Tracker | None, session: Session, publisher: Publisher) -> None:
    config, rank, workers = spec.config, session.rank, session.workers
    manifest = read_manifest(config.data.tiles, config.storage)
    learner = build_learner(spec, manifest, session.device)
    training, validation = build_streams(spec, manifest, rank, workers)
    task = spec.build_task()
    summary = EpochSummary(spec.card.outputs.main_metric, config.epochs_of(training.steps))

    def record(metrics: dict[str, float]) -> None:
        names = {"loss": "epoch/loss"} | {name: name.replace("_", "/", 1) for name in metrics if _is_figure(name)}
        figures = {new: metrics[name] for name, new in names.items() if name in metrics}
        if tracker is not None and figures:  # of an epoch's end, or of the start
            tracker.metrics(figures, int(metrics["step"]))
            tracker.flush()  # a sweep may stop its trial because of the metrics reported now

    with session.open_newest() as newest:
        if newest is None:
            spec.initialize(learner, training)
        else:
            restore_checkpoint(newest.folder, learner)
            load_task_state(task, learner.task_state, rank)
            if rank == 0:
                done = learner.position.epoch * training.steps + learner.position.step
                session.tell(f"resuming from step {done} with {workers} worker{'s' * (workers > 1)}")
            kept = learner.best if learner.best and learner.best.weights else None
            summary.resume(newest.metrics, None if kept is None else (kept.step // training.steps, kept.value))
            record(newest.metrics)  # the process that saved the checkpoint may have died before sending these

    def show(snapshot: Snapshot) -> None:
        publisher.set("data_wait_ratio", snapshot.data_wait)
        if rank == 0:
            session.show(replace(snapshot, validation=summary.latest))
        if tracker is not None:
            values = {"train/loss": snapshot.loss, "lr": snapshot.lr, "tiles_per_s": snapshot.tiles_per_s}
            parts = {f"train/{name}": value for name, value in snapshot.parts.items()}
            tracker.metrics(values | parts | {"data_wait": snapshot.data_wait}, snapshot.step)

    def save(metrics: dict[str, float]) -> None:
        record(metrics)
        if (line := summary.add(metrics)) and rank == 0:
            session.tell(line)
        learner.task_state = gather_task_state(task, rank, workers)
        folder = make_scratch_folder() if rank == 0 else None
        if folder is not None:
            save_checkpoint(folder, learner, spec.card)
        session.report(metrics, folder)

    parallel: Any = session.wrap(learner.model)
    if config.compile:
        parallel = torch.compile(parallel)
    try:
        train(learner, parallel, task, training, validation, config, Hooks(show, save, session.leaving))
        if rank == 0 and (line := summary.close(keep_best=learner.best is not None)):
            session.tell(line)
    finally:
        training.close()
        validation.close()
        if tracker is not None:
            tracker.close()


@contextmanager
def _tell_warnings(session: Session) -> Iterator[None]:
    handler = WarningHandler(session.tell)
    logging.getLogger("histill").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("histill").removeHandler(handler)


def _is_figure(name: str) -> bool:
    return name.startswith(("val_", "current_"))
