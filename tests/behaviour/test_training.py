"""Training in one process: a student learns from its teacher, unaffected by restarts and the number of workers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from histill.artifacts.model_folder import ModelCard, build
from histill.config.common import Storage
from histill.config.load import set_value, validate
from histill.config.pretrain_student import PretrainConfig
from histill.errors import HistillError, InputError
from histill.outputs import OutputSpec
from histill.stream.counter_rng import multiset_hash
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tasks.responses import Responses
from histill.tasks.training_task import TrainingTask
from histill.teachers.classical import ClassicalTeacher
from histill.tiles.manifest import Manifest
from histill.train.checkpoint import Learner, restore_checkpoint, save_checkpoint
from histill.train.coverage import DataState
from histill.train.loop import Hooks, train
from histill.train.schedule import make_optimizer
from histill.train.snapshot import Snapshot

pytestmark = pytest.mark.behaviour

BATCH = 4


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=24, tile_px=64)  # 16 for training: 4 steps


def configured(manifest: Manifest, **changes: Any) -> PretrainConfig:
    data: dict[str, Any] = {
        "name": "run",
        "runs": "unused",
        "data": {"tiles": manifest.uri, "batch_size": BATCH},
        "teacher": {"classical": True},
        "optimizer": {"epochs": 2, "lr": 3e-3, "weight_decay": 0.0},
    }
    for key, value in changes.items():
        data = set_value(data, key.replace("__", "."), value)
    return validate(PretrainConfig, data, "the test")


def card(manifest: Manifest) -> ModelCard:
    return ModelCard(
        encoder="csat_tiny",
        decoder_channels=(32, 16, 16, 8, 8),
        classes=("background", "nucleus"),
        mean=(0.7, 0.6, 0.7),
        std=(0.2, 0.2, 0.2),
        tile_px=manifest.header.tile_px,
        tile_mpp=0.5,
        size_px=manifest.header.tile_px,
        tiles_digest=manifest.header.digest,
        train_cases=(),
        histill="0",
    )


def learner(manifest: Manifest, config: PretrainConfig, seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    model = build(card(manifest))
    position = DataState(batch_size=BATCH, tiles_digest=manifest.header.digest)
    return Learner(model, make_optimizer([list(model.parameters())], config.optimizer), position)


def stream(manifest: Manifest, split: str = "train", worker: int = 0, workers: int = 1, **changes: Any) -> TileStream:
    values: dict[str, Any] = {
        "manifest": manifest,
        "source": TileSource(manifest.uri, manifest.header.digest, Storage()),
        "split": split,
        "views": Views(manifest.header.tile_px, manifest.header.tile_px),
        "batch_size": BATCH,
        "worker": worker,
        "workers": workers,
    }
    return TileStream(**values | changes)


def task(config: PretrainConfig) -> TrainingTask:
    return TrainingTask(
        OutputSpec("segmentation", ("background", "nucleus")),
        config.loss,
        Responses(ClassicalTeacher(0.5)),
        scored_by_teacher=True,
    )


@dataclass
class Recorder:
    """Hooks that record the loop's calls; `on_save` is called in addition."""

    snapshots: list[Snapshot] = field(default_factory=list)
    saved: list[dict[str, float]] = field(default_factory=list)
    on_save: Callable[[dict[str, float]], None] = lambda metrics: None

    def hooks(self) -> Hooks:
        def save(metrics: dict[str, float]) -> None:
            self.saved.append(metrics)
            self.on_save(metrics)

        return Hooks(self.snapshots.append, save)


def run(manifest: Manifest, config: PretrainConfig, learns: Learner, recorder: Recorder | None = None) -> Recorder:
    recorder = recorder or Recorder()
    limits = {"max_corrupt": config.data.max_corrupt, "balance": config.data.balance}
    training, validation = stream(manifest, **limits), stream(manifest, "val")
    train(learns, learns.model, task(config), training, validation, config, recorder.hooks())
    return recorder


def test_a_student_learns_its_teacher(manifest: Manifest) -> None:
    epochs = 12
    config = configured(manifest, optimizer__epochs=epochs)
    recorder = run(manifest, config, learner(manifest, config))
    first, last = recorder.saved[0], recorder.saved[-1]
    assert last["loss"] < 0.5 * first["loss"]
    assert last["val_dice"] > 0.85
    assert [saved["epochs"] for saved in recorder.saved] == list(range(1, epochs + 1))
    assert last["step"] == 4 * epochs
    assert all(saved["tiles"] == 16 for saved in recorder.saved)
    final = recorder.snapshots[-1]
    assert (final.step, final.steps, final.tiles) == (4 * epochs, 4 * epochs, 16 * epochs)
    assert 0 <= final.data_wait <= 1
    assert final.parts.keys() == {"soft_cross_entropy"}


class Lost(Exception):
    """A machine was lost."""


def stop_and_go_on(manifest: Manifest, config: PretrainConfig, folder: Path, lost_at: int) -> tuple[Learner, Recorder]:
    """A run that is lost after the checkpoint of step `lost_at` and resumes from it as another learner."""
    stopped = learner(manifest, config)

    def save_and_stop(metrics: dict[str, float]) -> None:
        save_checkpoint(str(folder), stopped, card(manifest))
        if metrics["step"] == lost_at:
            raise Lost

    with pytest.raises(Lost):
        run(manifest, config, stopped, Recorder(on_save=save_and_stop))
    resumed = learner(manifest, config, seed=99)
    restore_checkpoint(str(folder), resumed)
    return resumed, run(manifest, config, resumed)


VARIED = {"crop_px": 32, "brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "stain": 0.05}


@pytest.mark.parametrize(
    ("lost_at", "changes"),
    [
        (4, {}),
        (6, {"data__augment": VARIED}),
        (10, {"data__balance": "case"}),
    ],
    ids=["between epochs", "inside an epoch of varied tiles", "inside the last epoch, balanced"],
)
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    manifest: Manifest, tmp_path: Path, lost_at: int, changes: dict[str, Any]
) -> None:
    config = configured(manifest, optimizer__epochs=3, checkpoint_every=2, **changes)
    through = learner(manifest, config)
    run(manifest, config, through)
    resumed, recorder = stop_and_go_on(manifest, config, tmp_path, lost_at)
    assert recorder.saved[-1]["step"] == 12
    assert min(saved["step"] for saved in recorder.saved) > lost_at
    for name, tensor in through.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_a_checkpoint_inside_an_epoch_says_what_was_consumed(manifest: Manifest) -> None:
    config = configured(manifest, optimizer__epochs=1, checkpoint_every=3)
    learns = learner(manifest, config)
    positions: list[DataState] = []
    run(manifest, config, learns, Recorder(on_save=lambda metrics: positions.append(learns.position)))
    inside, after = positions
    first = list(stream(manifest).training_epoch(0, seed=0))[:3]
    tiles = torch.cat([batch.index for batch in first]).numpy()
    assert (inside.epoch, inside.step, inside.tiles, inside.tally) == (0, 3, 12, multiset_hash(tiles))
    assert (after.epoch, after.step, after.tiles, after.tally) == (1, 0, 0, 0)


@pytest.mark.parametrize("change", [{"tiles": 7}, {"tally": 1}], ids=["count", "tally"])
def test_a_ledger_that_does_not_add_up_stops_the_run(manifest: Manifest, change: dict[str, int]) -> None:
    """As if tiles outside the plan had been consumed before the restart."""
    config = configured(manifest, optimizer__epochs=1)
    learns = learner(manifest, config)
    before = list(stream(manifest).training_epoch(0, seed=0))[:2]
    fingerprint = multiset_hash(torch.cat([batch.index for batch in before]).numpy())
    honest = {"step": 2, "tiles": 8, "tally": fingerprint}
    learns.position = learns.position.model_copy(update=honest | change)
    recorder = Recorder()
    with pytest.raises(RuntimeError, match="tiles were lost or came twice"):
        run(manifest, config, learns, recorder)
    assert recorder.saved == []
    learns.position = learns.position.model_copy(update={"epoch": 0} | honest)
    assert run(manifest, config, learns).saved[-1]["tiles"] == 16


@pytest.fixture
def spoilt(tmp_path: Path, tile_set: Callable[..., Manifest], spoil_tile: Callable[..., str]) -> Manifest:
    """A tile set with one undecodable tile in each half of epoch 0."""
    manifest = tile_set(tmp_path / "tiles", tiles=24, tile_px=32)
    order = [tile for batch in stream(manifest).training_epoch(0, seed=0) for tile in batch.index.tolist()]
    jpegs = [tile for tile in order if tile % 4 != 3]
    for tile in (jpegs[0], jpegs[-1]):
        spoil_tile(manifest, tile)
    return manifest


def test_corrupt_tiles_up_to_the_limit_are_left_out(spoilt: Manifest) -> None:
    config = configured(spoilt, optimizer__epochs=1, data__max_corrupt=2)
    saved = run(spoilt, config, learner(spoilt, config)).saved[-1]
    assert saved["tiles"] == 16
    assert 0 < saved["loss"] < 10


def test_corrupt_tiles_over_the_limit_are_refused(spoilt: Manifest) -> None:
    config = configured(spoilt, optimizer__epochs=1, data__max_corrupt=1)
    recorder = Recorder()
    with pytest.raises(InputError, match=r"tile case-\d/\d+ .* number 2 and max_corrupt allows 1"):
        run(spoilt, config, learner(spoilt, config), recorder)
    assert recorder.saved == []


def test_corrupt_tiles_are_counted_over_a_whole_epoch_in_spite_of_a_restart(spoilt: Manifest, tmp_path: Path) -> None:
    """Each half of the epoch is within the limit, but not both together."""
    config = configured(spoilt, optimizer__epochs=1, data__max_corrupt=1, checkpoint_every=2)
    with pytest.raises(InputError, match=r"2 tiles of epoch 0 could not be decoded and data\.max_corrupt allows 1"):
        stop_and_go_on(spoilt, config, tmp_path, 2)


def test_a_finished_learner_has_nothing_left_to_do(manifest: Manifest) -> None:
    config = configured(manifest, optimizer__epochs=1)
    done = learner(manifest, config)
    run(manifest, config, done)
    assert run(manifest, config, done).saved == []


def test_a_loss_that_is_not_a_number_stops_the_run(manifest: Manifest) -> None:
    config = configured(manifest)
    broken = learner(manifest, config)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    recorder = Recorder()
    with pytest.raises(HistillError, match=r"not a number by step 3 of epoch 0.*lower optimizer\.lr"):
        run(manifest, config, broken, recorder)
    assert recorder.saved == []  # saved checkpoints stay usable


def gradients(manifest: Manifest, config: PretrainConfig, worker: int, workers: int, step: int) -> dict[str, Any]:
    """The gradient of one worker's share of a global batch, scaled as in the loop."""
    learns = learner(manifest, config)
    learns.model.eval()  # drop-path draws for a whole batch, so shares of it differ
    part = stream(manifest, "train", worker, workers)
    batch = list(part.training_epoch(0, seed=0, augment=config.data.augment))[step]
    terms = task(config).loss(learns.model, batch)
    (terms.loss * batch.valid.sum() * workers / batch.planned).backward()
    return {name: parameter.grad for name, parameter in learns.model.named_parameters()}


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("padded", [False, True], ids=["full batch", "padded batch"])
def test_the_gradient_does_not_depend_on_the_number_of_workers(
    tmp_path: Path, tile_set: Callable[..., Manifest], workers: int, padded: bool
) -> None:
    manifest = tile_set(tmp_path, tiles=21, tile_px=32)  # 14 for training: two padded rows in the last batches
    config = configured(
        manifest,
        loss__soft_dice__weight=0.5,
        loss__hard_cross_entropy__weight=0.5,
        data__augment=VARIED | {"crop_px": None},
    )
    last = list(stream(manifest).training_epoch(0, seed=0, augment=config.data.augment))[-1]
    assert last.planned < BATCH
    step = 3 if padded else 0
    alone = gradients(manifest, config, 0, 1, step)
    shares = [gradients(manifest, config, worker, workers, step) for worker in range(workers)]
    for name, expected in alone.items():
        joined = torch.stack([share[name] for share in shares]).mean(0)  # as DDP averages them
        assert (joined - expected).norm() < 2e-3 * expected.norm() + 1e-7, name
