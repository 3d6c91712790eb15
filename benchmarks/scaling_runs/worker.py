"""The work of each worker: the product's own training loop, with clocks at its hooks."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any
from unittest.mock import patch

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from benchmarks.scaling_runs.shares import Mark
from histill.tiles.manifest_file import read_manifest
from histill.train.build import build_learner, build_streams
from histill.train.checkpoint import checkpoint_name, save_checkpoint
from histill.train.loop import Hooks, train
from histill.train.snapshot import Snapshot
from histill.train.spec import RunSpec


class _Enough(Exception):
    """Enough steps were measured."""


@dataclass
class Clocks:
    """Cumulative times in seconds; a mark is made after each step."""

    marks: list[Mark] = field(default_factory=list)
    saved_s: float = 0.0
    reduced_s: float = 0.0
    _intervals: list[tuple[float, float]] = field(default_factory=list)  # of this step's buckets
    _lock: Lock = field(default_factory=Lock)

    def reducing(self, group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """DDP's own all-reduce of a bucket, timed from its hand-over to its end."""
        begun = time.monotonic()

        def ended(future: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
            with self._lock:
                self._intervals.append((begun, time.monotonic()))
            return future.value()

        return allreduce_hook(group, bucket).then(ended)

    def mark(self, snapshot: Snapshot, batch_size: int) -> None:
        """Note the state after a step of the first epoch."""
        with self._lock:
            self.reduced_s += union_s(self._intervals)
            self._intervals.clear()
        spent = snapshot.step * batch_size / snapshot.tiles_per_s  # according to the loop's own meter
        waited, processor = snapshot.data_wait * spent, time.process_time()
        self.marks.append(Mark(time.monotonic(), waited, self.reduced_s, self.saved_s, processor, idle_s()))


def union_s(intervals: list[tuple[float, float]]) -> float:
    """The length of the union of the intervals in seconds."""
    total, reached = 0.0, float("-inf")
    for begun, ended in sorted(intervals):
        total += max(0.0, ended - max(begun, reached))
        reached = max(reached, ended)
    return total


def idle_s() -> float:
    """Idle seconds of the machine, summed over its processors."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")  # idle, iowait


def measured_marks(prepared: RunSpec, steps: int) -> list[list[Mark]]:
    """Train for `steps` steps; returns the marks of each worker. Every worker calls it."""
    context = ray.train.get_context()
    rank, workers, config = context.get_world_rank(), context.get_world_size(), prepared.config
    torch.set_num_threads(1)
    manifest = read_manifest(config.data.tiles, config.storage)
    learner = build_learner(prepared, manifest, ray.train.torch.get_device())
    training, validation = build_streams(prepared, manifest, rank, workers)
    clocks = Clocks()

    def show(snapshot: Snapshot) -> None:
        clocks.mark(snapshot, config.data.batch_size)
        if snapshot.step == steps:
            raise _Enough

    def save(metrics: dict[str, float]) -> None:
        begun = time.monotonic()
        if rank == 0:  # as train/worker.py does
            folder = tempfile.mkdtemp(prefix="histill-")
            save_checkpoint(folder, learner, prepared.card)
            ray.train.report(
                metrics,
                ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"{config.name}-{checkpoint_name(int(metrics['step']))}",
                checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            )
        else:
            ray.train.report(metrics)
        clocks.saved_s += time.monotonic() - begun

    parallel = _parallel(learner.model, clocks.reducing)
    hooks = Hooks(show, save, lambda: ray.train.get_preemption_info() is not None)
    try:
        with patch("histill.train.loop.LOG_EVERY_S", 0.0):  # show every step
            train(learner, parallel, prepared.build_task(), training, validation, config, hooks)
    except _Enough:
        pass
    finally:
        training.close()
    return _gathered(clocks.marks, workers)


def _parallel(model: nn.Module, hook: Callable[..., Any]) -> nn.Module:
    parallel: nn.Module = ray.train.torch.prepare_model(model)
    if isinstance(parallel, DistributedDataParallel):
        parallel.register_comm_hook(dist.group.WORLD, hook)
    return parallel


def _gathered(marks: list[Mark], workers: int) -> list[list[Mark]]:
    if workers == 1:
        return [marks]
    every: list[Any] = [None] * workers
    dist.all_gather_object(every, marks)
    return every
