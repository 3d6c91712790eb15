"""The loop, on tiles in memory: results do not depend on how many workers share a batch, or how unevenly."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from histill.artifacts.model_folder import ModelCard
from histill.config.load import set_value, validate
from histill.config.pretrain_student import RckdLoss
from histill.config.runs import RunConfig, SupervisedLoss
from histill.errors import HistillError
from histill.outputs import OutputSpec
from histill.stream.plan import EpochPlan, Step, plan_steps, sequential_steps
from histill.stream.tile_batch import TileBatch
from histill.tasks.responses import Responses
from histill.tasks.task import LossOutput, Student, Task
from histill.tasks.training_task import TrainingTask
from histill.tiles.masks import IGNORED
from histill.train import coverage, loop, statistics
from histill.train.best import Best
from histill.train.checkpoint import Learner, restore_checkpoint, save_checkpoint
from histill.train.coverage import DataState
from histill.train.loop import Hooks, train
from histill.train.snapshot import Snapshot
from histill.train.statistics import freeze_statistics

pytestmark = pytest.mark.unit

TILES, VAL, BATCH, SIDE = 45, 11, 8, 4  # six steps, the last of five tiles
STEPS = 6
CORRUPT = 7  # cannot be decoded
CLASSES = ("stroma", "tumour")


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Make the loop's own scalars float64 too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@dataclass(frozen=True)
class Stream:
    """The parts of a `TileStream` that the loop uses, on random tiles."""

    worker: int
    workers: int
    tiles: int = TILES
    batch_size: int = BATCH

    @property
    def steps(self) -> int:
        return -(-self.tiles // self.batch_size)

    @property
    def places(self) -> Any:
        return SimpleNamespace(tiles=np.arange(self.tiles))

    def tiles_of_epoch(self, epoch: int, *, seed: int) -> np.ndarray:
        return np.arange(self.tiles)

    def training_epoch(self, epoch: int, *, seed: int, augment: Any, from_step: int) -> Iterator[TileBatch]:
        plan = EpochPlan(np.arange(0, self.tiles + 1, 5), self.batch_size, seed, epoch, 16)
        return map(self._batch, plan_steps(plan, self.worker, self.workers, from_step))

    def exact_pass(self) -> Iterator[TileBatch]:
        return map(self._batch, sequential_steps(np.array([0, self.tiles]), self.worker, self.workers, self.batch_size))

    def _batch(self, step: Step) -> TileBatch:
        random = np.random.default_rng(3)
        pixels = random.integers(0, 256, (self.tiles, 3, SIDE, SIDE), np.uint8)
        masks = random.integers(0, 2, (self.tiles, SIDE, SIDE), np.uint8)
        levels = random.integers(0, 256, (self.tiles, 1, SIDE, SIDE), np.uint8)
        masks[random.random(masks.shape) < 0.3] = IGNORED
        masks[9:14] = IGNORED
        there, shown = step.entries >= 0, step.entries.copy()
        shown[~there] = step.fill
        return TileBatch(
            student=torch.from_numpy(pixels[shown]),
            teacher=None,
            valid=torch.from_numpy(there & (step.entries != CORRUPT)),
            index=torch.from_numpy(step.entries),
            label=torch.from_numpy(np.where(there, step.entries % 3 % 2, -1)),
            mask=torch.from_numpy(masks[step.entries]),
            response=torch.from_numpy(levels[step.entries]),
            planned=step.planned,
        )


class Doubled(nn.Module):
    """A network in float64, so that equal means equal."""

    def __init__(self, target: str) -> None:
        super().__init__()
        last = nn.Sequential(nn.Flatten(), nn.Linear(5 * SIDE * SIDE, 2)) if target == "classes" else nn.Conv2d(5, 2, 1)
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.GELU(), last).double()

    def forward(self, tiles: Tensor) -> Tensor:
        return self.layers(tiles.double() / 255)


def classify(classes: tuple[str, ...], weights: tuple[float, ...] | None, smoothing: float = 0.0) -> TrainingTask:
    terms = {"cross_entropy": {"smoothing": smoothing, "class_weights": weights is not None}, "dice": None}
    return TrainingTask(
        OutputSpec("classification", classes), SupervisedLoss.model_validate(terms), class_weights=weights
    )


OUTPUTS = OutputSpec("segmentation", CLASSES)
TASKS: dict[str, Task] = {
    "classes": classify(CLASSES, (0.5, 1.5)),
    "masks": TrainingTask(OUTPUTS, SupervisedLoss()),
    "responses": TrainingTask(
        OUTPUTS,
        RckdLoss.model_validate({"hard_cross_entropy": {"weight": 0.5}, "soft_dice": {"weight": 0.5}}),
        Responses(None),
        scored_by_teacher=True,
    ),
}


def configured(**changes: Any) -> RunConfig:
    data: dict[str, Any] = {
        "name": "run",
        "runs": "unused",
        "data": {"tiles": "unused", "batch_size": BATCH, "max_corrupt": 1},
        "optimizer": {"epochs": 2, "lr": 0.5, "clip_norm": 1e6},
        "workers": {"count": 1},
        "checkpoint_every": 1000,
    }
    for key, value in changes.items():
        data = set_value(data, key.replace("__", "."), value)
    return validate(RunConfig, data, "the test")


def learner(target: str) -> Learner:
    torch.manual_seed(0)
    model = Doubled(target)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr_scale": 1.0}], lr=0.1)
    return Learner(model, optimizer, DataState(batch_size=BATCH, tiles_digest="tiles"))


@dataclass
class World:
    """Workers as threads, with sums over them and gradients averaged as in DDP."""

    size: int
    monkeypatch: pytest.MonkeyPatch
    here: threading.local = field(default_factory=threading.local)
    given: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=60)
        for module in (coverage, loop, statistics):
            self.monkeypatch.setattr(module, "sum_over_workers", self.sum)

    def sum(self, value: Tensor) -> Tensor:
        self.given[self.here.worker] = value
        self.barrier.wait()
        total = sum(self.given[worker] for worker in range(self.size))
        self.barrier.wait()
        return total

    def average_gradients(self, learns: Learner) -> list[list[Tensor]]:
        """Average gradients before each optimizer step; the returned list collects the averages."""
        seen = []

        def average(*_: Any) -> None:
            for parameter in learns.model.parameters():
                assert parameter.grad is not None
                parameter.grad = self.sum(parameter.grad) / self.size
            seen.append([parameter.grad.clone() for parameter in learns.model.parameters()])

        learns.optimizer.register_step_pre_hook(average)
        return seen

    def each(self, work: Callable[[int], Any]) -> list[Any]:
        """Run `work(worker)` for all workers in parallel."""

        def begin(worker: int) -> Any:
            self.here.worker = worker
            try:
                return work(worker)
            except BaseException:
                self.barrier.abort()  # else the others would wait forever
                raise

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(begin, range(self.size)))


class Lost(Exception):
    """A node was lost."""


@dataclass
class Ran:
    """The record of one worker's run."""

    learner: Learner
    gradients: list[list[Tensor]]
    saved: list[dict[str, float]]
    shown: list[Snapshot]


def run(
    config: RunConfig,
    task: Task,
    target: str,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    after: Learner | None = None,
    lost_at: int | None = None,
    leaving: Callable[[], bool] = lambda: False,
    made: Callable[[str], Learner] = learner,
) -> list[Ran]:
    """Run each worker from the state of `after`, until just after the save at step `lost_at`."""
    monkeypatch.setattr(loop, "_in_precision", lambda model, *_: model)
    world = World(workers, monkeypatch)
    learners = [made(target) for _ in range(workers)]

    def work(worker: int) -> Ran:
        learns = learners[worker]
        if after is not None:
            learns.model.load_state_dict(after.model.state_dict())
            learns.position = after.position
        ran = Ran(learns, world.average_gradients(learns), [], [])

        def save(metrics: dict[str, float]) -> None:
            ran.saved.append(metrics)
            if metrics["step"] == lost_at:
                raise Lost

        streams: Any = Stream(worker, workers), Stream(worker, workers, VAL)
        with contextlib.suppress(Lost):
            train(learns, learns.model, task, *streams, config, Hooks(ran.shown.append, save, leaving))
        return ran

    return world.each(work)


def assert_equal(found: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for gradient, wanted in zip(one, other, strict=True):
            assert wanted.norm() > 0
            torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("target", TASKS)
@pytest.mark.parametrize(("workers", "accumulate"), [(2, 1), (3, 1), (5, 1), (3, 2), (1, 3)])
def test_gradients_and_figures_are_those_of_one_worker(
    target: str, workers: int, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Including the padded batch, where a worker may have no tile at all, the batch with a corrupt tile, and masks with
    ignored pixels and tiles."""
    (alone,) = run(configured(), TASKS[target], target, 1, monkeypatch)
    assert len(alone.gradients) == 2 * STEPS
    shared = run(configured(optimizer__accumulate=accumulate), TASKS[target], target, workers, monkeypatch)
    for worker in shared:
        assert_equal(worker.gradients, alone.gradients)
        assert worker.learner.position == alone.learner.position
        ends = [each for each in worker.shown if each.step % STEPS == 0]
        assert [(each.tiles, each.all_tiles) for each in ends] == [(TILES, 2 * TILES), (2 * TILES, 2 * TILES)]
        for found, expected in zip(worker.saved, alone.saved, strict=True):
            assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("worlds", [(3, 2), (1, 4), (5, 3)])
def test_a_world_that_changes_in_the_middle_changes_nothing(
    worlds: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, task = configured(checkpoint_every=4), TASKS["classes"]
    (alone,) = run(config, task, "classes", 1, monkeypatch)
    before = run(config, task, "classes", worlds[0], monkeypatch, lost_at=STEPS + 4)[0]
    after = run(config, task, "classes", worlds[1], monkeypatch, after=before.learner)[0]
    assert [saved["step"] for saved in before.saved + after.saved] == [4, STEPS, STEPS + 4, 2 * STEPS]
    assert_equal(before.gradients + after.gradients, alone.gradients)
    assert after.learner.position == alone.learner.position
    for figure in ("loss", "val_auroc"):  # over the whole epoch, not only since the restart
        assert after.saved[-1][figure] == pytest.approx(alone.saved[-1][figure])


class Normed(Doubled):
    """With a batch norm on the raw pixels, so that its statistics can be computed from the tiles."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.layers.insert(0, nn.BatchNorm2d(3).double())


def normed(target: str) -> Learner:
    learns = learner(target)
    torch.manual_seed(0)
    model = Normed(target)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr_scale": 1.0}], lr=0.1)
    return replace(learns, model=model, optimizer=optimizer, average=ModelEmaV3(model, decay=0.5))


def tracked(streams: list[Stream], epochs: int, saved: int) -> tuple[np.ndarray, np.ndarray]:
    """The expected running statistics of a default BatchNorm2d, averaged over workers after step `saved` and epochs."""
    mean, var = np.zeros((len(streams), 3)), np.ones((len(streams), 3))
    for epoch in range(epochs):
        epochs_of = [each.training_epoch(epoch, seed=0, augment=None, from_step=0) for each in streams]
        for step, parts in enumerate(zip(*epochs_of, strict=True), start=1):
            for worker, part in enumerate(parts):
                if part.index.tolist() in ([CORRUPT], [CORRUPT, -1]):  # nothing to average
                    continue
                values = part.student.numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255
                mean[worker] += 0.1 * (values.mean(1) - mean[worker])
                var[worker] += 0.1 * (values.var(1, ddof=1) - var[worker])
            if step in (saved, STEPS):
                mean[:], var[:] = mean.mean(0), var.mean(0)
    return mean[0], var[0]


@pytest.mark.parametrize("workers", [1, 3, 5])
def test_batch_norms_keep_statistics_of_all_workers_tiles_alone(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding, which may be all that a worker has, does not count; the statistics are equal on all workers."""
    ran = run(configured(checkpoint_every=4), TASKS["masks"], "masks", workers, monkeypatch, made=normed)
    mean, var = tracked([Stream(worker, workers) for worker in range(workers)], epochs=2, saved=4)
    for each in ran:
        state = each.learner.model.state_dict()
        np.testing.assert_allclose(state["layers.0.running_mean"], mean, rtol=1e-9)
        np.testing.assert_allclose(state["layers.0.running_var"], var, rtol=1e-9)
        assert each.learner.average is not None
        for name, value in each.learner.average.module.state_dict().items():
            torch.testing.assert_close(value, ran[0].learner.average.module.state_dict()[name])  # type: ignore[union-attr]


def test_a_batch_norm_rests_where_no_tile_counts() -> None:
    norm = nn.BatchNorm2d(3, momentum=0.3)
    with freeze_statistics(norm, rest=True):
        norm(torch.rand(4, 3, 2, 2, dtype=torch.float32).double())
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [0, 0, 0]
    assert norm.momentum == 0.3
    with freeze_statistics(norm, rest=False):
        norm(torch.ones(4, 3, 2, 2).double())
    assert norm.running_mean.tolist() == pytest.approx([0.3, 0.3, 0.3])


@pytest.mark.parametrize(
    ("rows", "count", "widths"), [(8, 3, [2, 3, 3]), (3, 3, [1, 1, 1]), (4, 1, [4]), (5, 2, [2, 3])]
)
def test_the_parts_of_a_batch_hold_each_row_once(rows: int, count: int, widths: list[int]) -> None:
    entries = np.arange(rows)
    whole = Stream(0, 1)._batch(Step(0, entries, entries, rows))
    parts = list(loop._parts(whole, count))
    assert [len(part.index) for part, _ in parts] == widths
    assert [last for _, last in parts] == [False] * (count - 1) + [True]
    for name in ("student", "valid", "index", "label", "mask", "response"):
        assert torch.equal(torch.cat([getattr(part, name) for part, _ in parts]), getattr(whole, name)), name
    assert {(part.planned, part.teacher) for part, _ in parts} == {(rows, None)}


class Clock:
    """A clock per worker, advanced by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here = threading.local()
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: self.here.now))


def asked_at(
    paces: list[float], monkeypatch: pytest.MonkeyPatch, known_from: float = 1e9, slow_from: float = 1e9
) -> list[Any]:
    """For each worker, with `paces` in seconds per step (tenfold from `slow_from` on), the steps at which it polled and
    those at which it noticed a preemption."""
    world, clock = World(len(paces), monkeypatch), Clock(monkeypatch)

    def work(worker: int) -> tuple[list[int], list[int]]:
        clock.here.now, asked, noticed = 100.0, [], []

        def leaving() -> bool:
            asked.append(step)
            return step >= known_from

        watch = loop._Watch(leaving)
        for step in range(1, 101):
            clock.here.now += paces[worker] * (10 if step >= slow_from else 1)
            if watch.first_notice():
                noticed.append(step)
        return asked, noticed

    return world.each(work)


@pytest.mark.parametrize(
    ("pace", "at"),
    [
        (0.1, [1, 3, 7, 15, 31, 51, 71, 91]),
        (0.5, [1, *range(3, 101, 4)]),
        (1.9, list(range(1, 101))),
        (30.0, list(range(1, 101))),
    ],
    ids=["quick", "slow", "of two seconds", "very slow"],
)
def test_a_worker_asks_about_every_two_seconds(pace: float, at: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_at([pace], monkeypatch) == [(at, [])]


def test_a_worker_that_becomes_slower_asks_at_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example because the first steps were fast with prefetched tiles, or because epochs are short."""
    ((asked, _),) = asked_at([0.1], monkeypatch, slow_from=32)
    assert asked == [1, 3, 7, 15, 31, *range(51, 101, 2)]


def test_workers_of_unequal_pace_ask_at_equal_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """At their mean pace, because polling synchronizes them."""
    of_all = asked_at([0.1, 0.2, 0.6], monkeypatch)
    assert of_all == [([1, 3, *range(7, 101, 7)], [])] * 3


def test_notice_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_at([0.5, 0.5], monkeypatch, known_from=30) == [([1, *range(3, 32, 4)], [31])] * 2


def test_a_clock_that_stands_still_asks_hardly_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_at([0.0], monkeypatch) == [([1, 3, 7, 15, 31, 63], [])]


@pytest.mark.parametrize(
    ("noticed_at", "steps"),
    [
        (10, [STEPS, 10, 2 * STEPS]),
        (2 * STEPS, [STEPS, 2 * STEPS]),  # saved anyway
    ],
    ids=["inside an epoch", "at its end"],
)
def test_a_run_saves_once_when_a_node_is_leaving(
    noticed_at: int, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOOK_EVERY_S", 0.0)  # asks at each step
    counts: dict[int, int] = {}

    def leaving() -> bool:
        asks = counts[threading.get_ident()] = counts.get(threading.get_ident(), 0) + 1
        return asks >= noticed_at

    of_all = run(configured(), TASKS["classes"], "classes", 3, monkeypatch, leaving=leaving)
    assert [[saved["step"] for saved in ran.saved] for ran in of_all] == [steps] * 3


@dataclass(frozen=True)
class Breaks:
    """A task whose loss is NaN at its `at`-th batch."""

    task: Task
    at: int
    asked: list[int] = field(default_factory=list)

    def loss(self, model: Student, batch: TileBatch) -> LossOutput:
        self.asked.append(0)
        terms = self.task.loss(model, batch)
        return replace(terms, loss=terms.loss * float("nan")) if len(self.asked) == self.at else terms

    def build_metric(self, tiles: np.ndarray) -> Any:
        return self.task.build_metric(tiles)


@pytest.mark.parametrize(
    ("at", "place", "kept"),
    [
        (2, "by step 3 of epoch 0", None),
        (5, "by step 5 of epoch 0", 4),
        (STEPS + 1, "by step 3 of epoch 1", STEPS),
        (2 * STEPS, "by step 5 of epoch 1", STEPS + 4),
    ],
)
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_last_good_checkpoint(
    at: int, place: str, kept: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_in_precision", lambda model, *_: model)
    saved: list[float] = []
    streams: Any = Stream(0, 1), Stream(0, 1, VAL)
    learns, hooks = learner("classes"), Hooks(lambda snapshot: None, lambda metrics: saved.append(metrics["step"]))
    task = Breaks(TASKS["classes"], at)
    with pytest.raises(HistillError) as caught:
        train(learns, learns.model, task, *streams, configured(checkpoint_every=4), hooks)
    message = str(caught.value)
    assert f"not a number {place}, and the run stops; " in message
    assert ("no checkpoint is kept:" in message) == (kept is None)
    assert saved == [step for step in (4, STEPS, STEPS + 4) if step <= (kept or 0)]
    if kept:
        assert f"; step-{kept:08d} in the run's folder is the last good checkpoint: lower optimizer.lr" in message


FIGURE = "balanced_accuracy"
CARD = ModelCard.model_validate(
    {
        "encoder": "csat_tiny", "decoder_channels": (), "classes": CLASSES, "mean": (0, 0, 0), "std": (1, 1, 1),
        "tile_px": SIDE, "tile_mpp": 0.5, "size_px": SIDE, "tiles_digest": "tiles", "train_cases": (), "histill": "0",
    },
    strict=False,
)  # fmt: skip


def with_best(target: str) -> Learner:
    learns = learner(target)
    return replace(learns, average=ModelEmaV3(learns.model, decay=0.5), best=Best(FIGURE))


def scripted(values: list[float], monkeypatch: pytest.MonkeyPatch, begun: int = 0) -> dict[int, dict[str, Tensor]]:
    """Let validations find `values`, from number `begun` on; the weights that they see are returned by number."""
    turns: dict[int, int] = {}
    seen: dict[int, dict[str, Tensor]] = {}

    def evaluate(model: nn.Module, *_: Any) -> dict[str, float]:
        turn = turns[id(model)] = turns.get(id(model), begun - 1) + 1
        seen[turn] = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # the same on all workers
        return {FIGURE: values[turn]}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    return seen


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("values", "patience", "best", "last"),
    [
        ([0.5, 0.7, 0.6, 0.6, 0.6, 0.6], None, 1, 5),
        ([0.5, 0.7, 0.6, 0.7, 0.6, 0.6], None, 3, 5),  # the later of equal ones
        ([0.9, 0.7, 0.6, 0.8, 0.6, 0.6], 3, 0, 3),  # the start
        ([0.5, 0.7, 0.6, 0.7, 0.6, 0.6], 2, 3, 5),
        ([0.5, 0.7, 0.6, 0.6, 0.8, 0.9], 2, 1, 3),
        ([float("nan"), 0.7, float("nan"), 0.6, 0.6, 0.6], None, 1, 5),
    ],
)
def test_the_best_model_is_kept_and_waited_for_so_long(
    values: list[float], patience: int | None, best: int, last: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scripted(values, monkeypatch)
    config = configured(optimizer__epochs=5, validation={"keep": "best", "patience": patience})
    for each in run(config, TASKS["classes"], "classes", workers, monkeypatch, made=with_best):
        assert [saved["step"] for saved in each.saved] == [STEPS * epoch for epoch in range(last + 1)]
        assert [saved[f"current_{FIGURE}"] for saved in each.saved] == pytest.approx(values[: last + 1], nan_ok=True)
        assert (each.saved[-1][f"val_{FIGURE}"], each.saved[-1]["best_step"]) == (values[best], STEPS * best)
        assert_same(each.learner.shipped.state_dict(), seen[best])
        assert_same(each.learner.kept, seen[best])


@pytest.mark.parametrize("lost_at", [0, STEPS, 3 * STEPS, 3 * STEPS + 4])
def test_a_run_that_keeps_its_best_model_resumes_as_if_it_had_never_stopped(
    lost_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [0.5, 0.7, 0.6, 0.6, 0.6, 0.9]
    config = configured(optimizer__epochs=5, validation={"keep": "best", "patience": 4}, checkpoint_every=4)
    scripted(values, monkeypatch)
    (alone,) = run(config, TASKS["classes"], "classes", 1, monkeypatch, made=with_best)
    scripted(values, monkeypatch)
    (before,) = run(config, TASKS["classes"], "classes", 1, monkeypatch, made=with_best, lost_at=lost_at)
    save_checkpoint(str(tmp_path), before.learner, CARD)

    def resumed(target: str) -> Learner:
        learns = with_best(target)
        for parameter in learns.model.parameters():
            nn.init.zeros_(parameter)
        restore_checkpoint(str(tmp_path), learns)
        return learns

    scripted(values, monkeypatch, begun=lost_at // STEPS + 1)
    (after,) = run(config, TASKS["classes"], "classes", 1, monkeypatch, made=resumed)
    assert before.saved + after.saved == alone.saved
    assert_same(after.learner.model.state_dict(), alone.learner.model.state_dict())
    assert_same(after.learner.kept, alone.learner.kept)
    assert after.learner.best is not None
    assert (after.learner.best.step, after.learner.best.value) == (5 * STEPS, 0.9)


@pytest.mark.parametrize(("every", "at"), [(1, [1, 2, 3, 4, 5]), (STEPS, [1, 2, 3, 4, 5]), (11, [2, 4, 5])])
def test_a_run_is_validated_after_so_many_steps_and_at_its_end(
    every: int, at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(optimizer__epochs=5, validation__every_steps=every)
    (ran,) = run(config, TASKS["classes"], "classes", 1, monkeypatch)
    assert [saved["step"] for saved in ran.saved] == [STEPS * epoch for epoch in at]


def test_a_limit_of_steps_is_of_whole_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    for steps, epochs in ((1, 1), (STEPS + 2, 1), (2 * STEPS - 2, 2), (3 * STEPS, 3), (99 * STEPS, 7)):
        assert configured(optimizer__epochs=7, optimizer__steps=steps).epochs_of(STEPS) == epochs
    (ran,) = run(configured(optimizer__epochs=7, optimizer__steps=11), TASKS["classes"], "classes", 1, monkeypatch)
    assert [saved["step"] for saved in ran.saved] == [STEPS, 2 * STEPS]


def test_all_workers_decide_by_the_figures_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(3, monkeypatch)

    def work(worker: int) -> dict[str, float]:
        metric = SimpleNamespace(
            state=torch.zeros(1),
            update=lambda *_: None,
            compute=lambda: {FIGURE: 0.7 + 1e-15 * worker, "auroc": np.nan},
        )
        task: Any = SimpleNamespace(build_metric=lambda _: metric)
        stream: Any = Stream(worker, 3, VAL)
        return loop.evaluate(Doubled("classes"), task, stream, torch.device("cpu"))

    for found in world.each(work):
        assert found == pytest.approx({FIGURE: 0.7, "auroc": np.nan}, rel=0, abs=0, nan_ok=True)
