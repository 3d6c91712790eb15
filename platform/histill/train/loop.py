"""The training loop: fetch, forward and backward, step, log; after each epoch evaluate, save and report."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from histill.config.runs import RunConfig
from histill.errors import HistillError
from histill.stream.tile_batch import TileBatch
from histill.stream.tile_stream import TileStream
from histill.tasks.masks import measure_labeled
from histill.tasks.task import Student, Task
from histill.train.best import report
from histill.train.checkpoint import Learner, checkpoint_name
from histill.train.coverage import ConsumedCounter, DataState, advance, share_first, sum_over_workers, verify_epoch
from histill.train.schedule import learning_rate
from histill.train.snapshot import Snapshot
from histill.train.statistics import average_statistics, freeze_modules, freeze_statistics

T = TypeVar("T")
LOG_EVERY_S = 2.0
LOOK_EVERY_S = 2.0


@dataclass(frozen=True)
class Hooks:
    """The loop's callbacks. Every worker calls `save` and `leaving` equally often."""

    show: Callable[[Snapshot], None]
    save: Callable[[dict[str, float]], None]
    leaving: Callable[[], bool] = lambda: False  # whether a node will soon be preempted; equal on all workers


def train(
    learner: Learner,
    parallel: nn.Module,
    task: Task,
    training: TileStream,
    validation: TileStream,
    config: RunConfig,
    hooks: Hooks,
) -> None:
    """Train from `learner.position` to the last epoch. `parallel` is the model wrapped for data parallelism.

    The loss is averaged over the valid tiles of the global batch, or for masks over their labeled pixels, so the
    gradient does not depend on the number of workers. Where the best model is kept, the model before the first step is
    the first candidate, and the learner ends with the best one. Raises HistillError when the loss is not finite.
    """
    epochs, patience = config.epochs_of(training.steps), config.validation.patience
    steps = training.steps * epochs
    device = next(learner.model.parameters()).device
    student = _in_precision(parallel, config.precision, device)
    watch = _Watch(hooks.leaving)
    if learner.best is not None and not learner.best.weights:
        figures = evaluate(learner.shipped, task, validation, device)
        hooks.save({"epochs": 0, "step": 0, "tiles": 0} | report(figures, learner.shipped, learner.best, step=0))
    while learner.position.epoch < epochs and not (learner.best and learner.best.is_final(patience)):
        epoch, first, earlier_loss = learner.position.epoch, learner.position.step, learner.position.loss
        meter, consumed, notice = _Meter(device), ConsumedCounter(), False
        parallel.train()
        freeze_modules(learner.model)
        batches = training.training_epoch(epoch, seed=config.data.seed, augment=config.data.augment, from_step=first)
        for step, batch in enumerate(meter.waiting(batches), start=first):
            consumed.add(batch)
            global_step = epoch * training.steps + step
            torch.manual_seed(config.seed * 1_000_003 + global_step)  # makes drop-path reproducible after a restart
            lr = learning_rate(config.optimizer, global_step, steps)
            for group in learner.optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            learner.optimizer.zero_grad(set_to_none=True)
            if batch.mask is not None:  # over the global batch: no worker or part knows what the others have labeled
                batch = replace(batch, labeled=measure_labeled(batch, lambda each: sum_over_workers(each.to(device))))
            for here, last in _parts(batch, config.optimizer.accumulate):
                part = _to_device(here, device)
                alone = contextlib.nullcontext() if last else _skip_sync(parallel)
                spoilt = bool((here.index >= 0).any()) and not here.valid.any()  # no tile could be decoded
                with alone, freeze_statistics(learner.model, rest=spoilt):
                    terms = task.loss(student, part)
                    share = part.valid.sum() * training.workers / batch.planned  # DDP averages over workers, not tiles
                    (terms.loss * share).backward()
                meter.count(part, terms.loss.detach(), terms.parts)
            norm = nn.utils.clip_grad_norm_(learner.model.parameters(), config.optimizer.clip_norm)
            learner.optimizer.step()
            learner.average_step(global_step)
            meter.stepped(norm)
            if meter.due() and step + 1 < training.steps:  # an epoch's end is always shown
                hooks.show(meter.snapshot(training, epoch, global_step, steps, lr))
            notice = watch.first_notice()
            if ((step + 1) % config.checkpoint_every == 0 or notice) and step + 1 < training.steps:
                _check_finite(meter, learner.position, epoch, step, training.steps)
                learner.position = advance(learner.position, step + 1, consumed, earlier_loss + meter.loss())
                _average(learner, training.workers)
                hooks.save({"epochs": epoch, "step": global_step + 1, "tiles": learner.position.tiles})
        _check_finite(meter, learner.position, epoch, training.steps - 1, training.steps)
        done = advance(learner.position, training.steps, consumed, earlier_loss + meter.loss())
        verify_epoch(done, training.tiles_of_epoch(epoch, seed=config.data.seed), config.data.max_corrupt)
        _average(learner, training.workers)
        learner.position = done.next_epoch()
        hooks.show(meter.snapshot(training, epoch, (epoch + 1) * training.steps - 1, steps, lr))
        end = (epoch + 1) * training.steps
        finished = {"epochs": epoch + 1, "step": end, "loss": done.mean_loss, "tiles": done.tiles}
        if epoch + 1 == epochs or config.validation.is_due(epoch, training.steps):
            figures = evaluate(learner.shipped, task, validation, device)
            hooks.save(finished | report(figures, learner.shipped, learner.best, step=end))
        elif notice:
            hooks.save(finished)
    if learner.best is not None:
        learner.shipped.load_state_dict(learner.best.weights)


def _average(learner: Learner, workers: int) -> None:
    """Give all workers the same batch-norm statistics: worker 0 saves its model, and each worker evaluates its own."""
    average_statistics(learner.model, workers)
    if learner.average is not None:
        average_statistics(learner.average.module, workers)


@torch.inference_mode()
def evaluate(model: nn.Module, task: Task, stream: TileStream, device: torch.device) -> dict[str, float]:
    """The task's metrics over the whole split and all workers, the same on each; every tile counts exactly once."""
    model.eval()
    metric = task.build_metric(np.asarray(stream.places.tiles))
    seen = torch.zeros((), dtype=torch.int64)
    for batch in stream.exact_pass():
        seen += (batch.index >= 0).sum()
        batch = _to_device(batch, device)
        metric.update(model(batch.student.float()), batch)
    metric.state = sum_over_workers(metric.state)
    total = int(sum_over_workers(seen))
    if total != stream.tiles:
        raise RuntimeError(f"evaluation saw {total} tiles of {stream.tiles}")
    figures = metric.compute()
    agreed = share_first(torch.tensor(list(figures.values()), dtype=torch.float64), stream.worker)
    return dict(zip(figures, agreed.tolist(), strict=True))


def _in_precision(model: nn.Module, precision: str, device: torch.device) -> Student:
    """Wrap the model to run in `precision` and return float32; losses and a live teacher stay in float32."""

    def forward(tiles: torch.Tensor) -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            output = model(tiles)
        return tree_map(lambda each: None if each is None else each.float(), output)

    return forward


def _parts(batch: TileBatch, count: int) -> Iterator[tuple[TileBatch, bool]]:
    """Split the rows of `batch` into `count` near-equal parts; yields each part and whether it is the last."""
    rows = len(batch.index)
    for number in range(count):
        part = slice(rows * number // count, rows * (number + 1) // count)
        yield batch.map_rows(itemgetter(part)), number == count - 1


def _skip_sync(parallel: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Skip DDP's gradient all-reduce, which only the last accumulated part needs."""
    wrapped = getattr(parallel, "_orig_mod", parallel)  # the module inside torch.compile's wrapper
    return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else contextlib.nullcontext()


def _to_device(batch: TileBatch, device: torch.device) -> TileBatch:
    if device.type == "cpu":
        return batch
    return batch.to(device, non_blocking=True)


@dataclass
class _Meter:
    """Accumulates an epoch's loss on the device; the host synchronizes only when a value is read."""

    device: torch.device
    _loss: torch.Tensor = field(init=False)
    _norms: torch.Tensor = field(init=False)  # sum of gradient norms: stays non-finite once one was
    _parts: dict[str, torch.Tensor] = field(default_factory=dict)
    _begun: float = field(default_factory=time.monotonic)
    _shown: float = field(default_factory=time.monotonic)
    _waited: float = 0.0
    _batches: int = 0

    def __post_init__(self) -> None:
        self._loss = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss x valid tiles, valid tiles
        self._norms = torch.zeros((), device=self.device)

    def waiting(self, items: Iterator[T]) -> Iterator[T]:
        """Yield `items`, adding up the time spent waiting for each."""
        while True:
            begun = time.monotonic()
            item = next(items, None)
            self._waited += time.monotonic() - begun
            if item is None:
                return
            yield item

    def count(self, batch: TileBatch, loss: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> None:
        valid = batch.valid.sum()
        self._loss += torch.stack([loss.double() * valid, valid.double()])
        for name, value in parts.items():
            self._parts[name] = self._parts.get(name, torch.zeros_like(value)) + value * valid

    def stepped(self, norm: torch.Tensor) -> None:
        self._norms += norm
        self._batches += 1

    def due(self) -> bool:
        return time.monotonic() - self._shown >= LOG_EVERY_S

    def finite(self) -> bool:
        return math.isfinite(float(self._loss[0])) and math.isfinite(float(self._norms))

    def snapshot(self, training: TileStream, epoch: int, step: int, steps: int, lr: float) -> Snapshot:
        here, before = step + 1 - epoch * training.steps, epoch * training.tiles
        done = min(here * training.batch_size, training.tiles)  # the last batch of an epoch may be smaller
        now = time.monotonic()
        self._shown = now
        spent = max(now - self._begun, 1e-9)
        counted = float(self._loss[1].clamp_min(1))
        return Snapshot(
            epoch=epoch,
            step=step + 1,
            steps=steps,
            tiles=before + done,
            all_tiles=steps // training.steps * training.tiles,
            loss=float(self._loss[0]) / counted,
            parts={name: float(value) / counted for name, value in self._parts.items()},
            lr=lr,
            tiles_per_s=(done - (here - self._batches) * training.batch_size) / spent,
            data_wait=self._waited / spent,
        )

    def loss(self) -> float:
        """The loss sum over the valid tiles of all workers."""
        return float(sum_over_workers(self._loss[0]))


def _check_finite(meter: _Meter, saved: DataState, epoch: int, step: int, steps: int) -> None:
    if meter.finite():
        return
    kept = saved.epoch * steps + saved.step
    good = (
        f"{checkpoint_name(kept)} in the run's folder is the last good checkpoint" if kept else "no checkpoint is kept"
    )
    raise HistillError(
        f"the loss or its gradient is not a number by step {step} of epoch {epoch}, and the run stops; {good}: lower "
        "optimizer.lr or the loss weights and start a new run.",
        code="loss-not-finite",
    )


class _Watch:
    """Polls for a pending preemption: all workers at the same steps, about every `LOOK_EVERY_S` seconds.

    Each poll recomputes the number of steps to the next one, since steps may become slower, and a validation or a
    checkpoint may fall in between.
    """

    def __init__(self, leaving: Callable[[], bool]) -> None:
        self._leaving = leaving
        self._steps, self._until_next = 0, 1
        self._looked_at = time.monotonic()
        self._noticed = False

    def first_notice(self) -> bool:
        """Call after each step; true exactly once, at the first poll that reports a preemption."""
        self._steps += 1
        if self._noticed or self._steps < self._until_next:
            return False
        now = time.monotonic()
        spent = torch.tensor([now - self._looked_at, 1.0], dtype=torch.float64)
        total, workers = sum_over_workers(spent).tolist()
        in_time = round(self._steps * LOOK_EVERY_S * workers / max(total, 1e-9))
        self._until_next = max(1, min(in_time, 2 * self._steps))  # a few fast steps may be outliers
        self._steps, self._looked_at = 0, now
        self._noticed = self._leaving()
        return self._noticed
