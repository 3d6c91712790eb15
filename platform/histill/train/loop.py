"""The training loop, top to bottom: fetch, forward and backward, step, log; after each epoch score, save, report."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from histill.config.runs import RunConfig
from histill.distill.task import Task
from histill.errors import HistillError
from histill.evaluate.confusion import Overlap, confusion
from histill.models.resolution import logits_of
from histill.stream.batches import TileBatch
from histill.stream.tile_stream import TileStream
from histill.train.checkpoint import Learner
from histill.train.schedule import learning_rate
from histill.train.snapshot import Snapshot

T = TypeVar("T")
LOG_EVERY_S = 2.0


@dataclass(frozen=True)
class Hooks:
    """What the loop tells the outside. `save` is called by every worker, equally often."""

    show: Callable[[Snapshot], None]
    save: Callable[[dict[str, float]], None]


def train(
    learner: Learner,
    parallel: nn.Module,
    task: Task,
    training: TileStream,
    validation: TileStream,
    config: RunConfig,
    hooks: Hooks,
) -> None:
    """Train from `learner.position` to the last epoch. `parallel` is the model as the workers share it.

    The gradient is that of the mean over the valid tiles of the global batch, so it does not depend on the number of
    workers. Raises HistillError when the loss is not finite.
    """
    steps = training.steps * config.optimiser.epochs
    device = next(learner.model.parameters()).device
    while learner.position.epoch < config.optimiser.epochs:
        epoch, first = learner.position.epoch, learner.position.step
        meter = _Meter(training.batch_size, device)
        parallel.train()
        batches = training.training_epoch(epoch, seed=config.data.seed, flips=config.data.flips, from_step=first)
        for step, batch in enumerate(meter.waiting(batches), start=first):
            batch = _moved(batch, device)
            global_step = epoch * training.steps + step
            torch.manual_seed(config.seed * 1_000_003 + global_step)  # so that drop-path repeats after a restart
            lr = learning_rate(config.optimiser, global_step, steps)
            for group in learner.optimiser.param_groups:
                group["lr"] = lr
            terms = task.loss(parallel, batch)
            learner.optimiser.zero_grad(set_to_none=True)
            share = batch.valid.sum() * training.workers / batch.planned  # DDP averages over workers, not over tiles
            (terms.loss * share).backward()
            norm = nn.utils.clip_grad_norm_(learner.model.parameters(), config.optimiser.clip_norm)
            learner.optimiser.step()
            meter.count(batch, terms.loss.detach(), terms.parts, norm)
            if meter.due():
                hooks.show(meter.snapshot(epoch, global_step, steps, lr))
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < training.steps:
                _check_finite(meter, epoch, step)
                learner.position = learner.position.model_copy(update={"step": step + 1})
                hooks.save({"epochs": epoch, "step": global_step + 1})
        _check_finite(meter, epoch, training.steps - 1)
        loss, consumed = meter.totals()
        planned = training.planned_tiles(epoch, seed=config.data.seed, from_step=first)
        if consumed != planned:
            raise RuntimeError(f"epoch {epoch} consumed {consumed} tiles from step {first} on, the plan has {planned}")
        overlap = evaluate(learner.model, task, validation, device)
        learner.position = learner.position.model_copy(update={"epoch": epoch + 1, "step": 0})
        hooks.show(meter.snapshot(epoch, (epoch + 1) * training.steps - 1, steps, lr))
        hooks.save(
            {
                "epochs": epoch + 1,
                "step": (epoch + 1) * training.steps,
                "loss": loss,
                "val_dice": overlap.mean_dice,
                "val_miou": overlap.mean_iou,
                "tiles": consumed,
            }
        )


@torch.inference_mode()
def evaluate(model: nn.Module, task: Task, stream: TileStream, device: torch.device) -> Overlap:
    """Overlap of the model's decisions with the task's reference, at the tile's own size, over the whole split.

    Counts are summed over the workers; every tile is counted once.
    """
    model.eval()
    classes = len(task.classes)
    counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    seen = torch.zeros((), dtype=torch.int64, device=device)
    for batch in stream.exact_pass():
        batch = _moved(batch, device)
        decided = logits_of(model, batch.tiles, task.size_px).argmax(1)
        counts += confusion(decided, task.reference(batch), batch.valid, classes)
        seen += (batch.index >= 0).sum()
    _sum_over_workers(counts)
    _sum_over_workers(seen)
    expected = len(stream.manifest.rows_of(stream.split))
    if int(seen) != expected:
        raise RuntimeError(f"evaluation saw {int(seen)} tiles of {expected}")
    return Overlap.of(counts)


def _moved(batch: TileBatch, device: torch.device) -> TileBatch:
    if device.type == "cpu":
        return batch
    tensors = {
        name: value.to(device, non_blocking=True) for name, value in vars(batch).items() if torch.is_tensor(value)
    }
    return TileBatch(**(vars(batch) | tensors))


def _sum_over_workers(value: torch.Tensor) -> None:
    if dist.is_initialized():
        dist.all_reduce(value)


@dataclass
class _Meter:
    """Adds up one epoch on the device; nothing is fetched from it until somebody looks."""

    batch_size: int
    device: torch.device
    _loss: torch.Tensor = field(init=False)
    _norms: torch.Tensor = field(init=False)  # sum of the gradient's norms: not finite once one was not
    _parts: dict[str, torch.Tensor] = field(default_factory=dict)
    _begun: float = field(default_factory=time.monotonic)
    _shown: float = field(default_factory=time.monotonic)
    _waited: float = 0.0
    _batches: int = 0

    def __post_init__(self) -> None:
        self._loss = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss x tiles, valid tiles, planned tiles
        self._norms = torch.zeros((), device=self.device)

    def waiting(self, items: Iterator[T]) -> Iterator[T]:
        """`items`, timing how long each is waited for."""
        while True:
            begun = time.monotonic()
            item = next(items, None)
            self._waited += time.monotonic() - begun
            if item is None:
                return
            yield item

    def count(
        self, batch: TileBatch, loss: torch.Tensor, parts: Mapping[str, torch.Tensor], norm: torch.Tensor
    ) -> None:
        valid = batch.valid.sum()
        self._loss += torch.stack([loss.double() * valid, valid.double(), (batch.index >= 0).sum().double()])
        self._norms += norm
        for name, value in parts.items():
            self._parts[name] = self._parts.get(name, torch.zeros_like(value)) + value
        self._batches += 1

    def due(self) -> bool:
        return time.monotonic() - self._shown >= LOG_EVERY_S

    def finite(self) -> bool:
        return math.isfinite(float(self._loss[0])) and math.isfinite(float(self._norms))

    def snapshot(self, epoch: int, step: int, steps: int, lr: float) -> Snapshot:
        now = time.monotonic()
        self._shown = now
        spent = max(now - self._begun, 1e-9)
        return Snapshot(
            epoch=epoch,
            step=step + 1,
            steps=steps,
            tiles=(step + 1) * self.batch_size,
            loss=float(self._loss[0] / self._loss[1].clamp_min(1)),
            parts={name: float(value) / max(1, self._batches) for name, value in self._parts.items()},
            lr=lr,
            tiles_per_s=self._batches * self.batch_size / spent,
            data_wait=self._waited / spent,
        )

    def totals(self) -> tuple[float, int]:
        """Mean loss of the valid tiles, and tiles consumed, over all workers."""
        total = self._loss.clone()
        _sum_over_workers(total)
        return float(total[0] / total[1].clamp_min(1)), int(total[2])


def _check_finite(meter: _Meter, epoch: int, step: int) -> None:
    if not meter.finite():
        raise HistillError(
            f"the loss or its gradient is not a number by step {step} of epoch {epoch}; the last checkpoint is "
            "kept: lower optimiser.lr or the loss weights and start a new run."
        )
