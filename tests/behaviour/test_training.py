"""Training in one process: a student learns its teacher, and neither a stop nor the number of workers changes how."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from histill.artifacts.model_folder import ModelCard, build
from histill.config.common import Storage
from histill.config.load import validate, with_value
from histill.config.runs import PretrainConfig
from histill.distill.rckd import Rckd
from histill.errors import HistillError
from histill.stream.read import Source, read_groups
from histill.stream.tile_stream import TileStream
from histill.teachers.classical import ClassicalTeacher
from histill.tiles.manifest import Manifest
from histill.train.checkpoint import Learner, Position, restore_checkpoint, save_checkpoint
from histill.train.loop import Hooks, train
from histill.train.schedule import make_optimiser
from histill.train.snapshot import Snapshot

pytestmark = pytest.mark.behaviour

BATCH = 4


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=24, tile_px=64)  # 16 to train: 4 steps


def configured(manifest: Manifest, **changes: Any) -> PretrainConfig:
    data: dict[str, Any] = {
        "name": "run",
        "runs": "unused",
        "data": {"tiles": manifest.uri, "batch_size": BATCH},
        "teacher": {"classical": True},
        "optimiser": {"epochs": 2, "lr": 3e-3, "weight_decay": 0.0},
    }
    for key, value in changes.items():
        data = with_value(data, key.replace("__", "."), value)
    return validate(PretrainConfig, data, "the test")


def card(manifest: Manifest) -> ModelCard:
    return ModelCard(
        encoder="csat_tiny",
        decoder_channels=(32, 16, 16, 8, 8),
        classes=("background", "nucleus"),
        mean=(0.7, 0.6, 0.7),
        std=(0.2, 0.2, 0.2),
        tile_px=64,
        tile_mpp=0.5,
        size_px=64,
        tiles_digest=manifest.header.digest,
        train_cases="",
        histill="0",
    )


def learner(manifest: Manifest, config: PretrainConfig, seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    model = build(card(manifest))
    position = Position(batch_size=BATCH, tiles_digest=manifest.header.digest)
    return Learner(model, make_optimiser(model, config.optimiser), position)


def stream(manifest: Manifest, split: str = "train", worker: int = 0, workers: int = 1) -> TileStream:
    return TileStream(
        manifest=manifest,
        source=Source(manifest.uri, Storage()),
        split=split,
        batch_size=BATCH,
        worker=worker,
        workers=workers,
        read=read_groups,
    )


def task(config: PretrainConfig) -> Rckd:
    return Rckd(("background", "nucleus"), 64, config.loss, ClassicalTeacher(0.5))


@dataclass
class Recorder:
    """Hooks that note what the loop says; `on_save` may do more."""

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
    training, validation = stream(manifest), stream(manifest, "val")
    train(learns, learns.model, task(config), training, validation, config, recorder.hooks())
    return recorder


def test_a_student_learns_its_teacher(manifest: Manifest) -> None:
    epochs = 12
    config = configured(manifest, optimiser__epochs=epochs)
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
    assert final.parts.keys() == {"soft"}


class Lost(Exception):
    """A machine is gone."""


@pytest.mark.parametrize("lost_at", [4, 6, 10], ids=["between epochs", "inside an epoch", "inside the last epoch"])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(manifest: Manifest, tmp_path: Path, lost_at: int) -> None:
    config = configured(manifest, optimiser__epochs=3, checkpoint_every=2)
    through = learner(manifest, config)
    run(manifest, config, through)

    stopped = learner(manifest, config)

    def save_and_stop(metrics: dict[str, float]) -> None:
        save_checkpoint(str(tmp_path), stopped, card(manifest))
        if metrics["step"] == lost_at:
            raise Lost

    with pytest.raises(Lost):
        run(manifest, config, stopped, Recorder(on_save=save_and_stop))

    resumed = learner(manifest, config, seed=99)
    restore_checkpoint(str(tmp_path), resumed)
    recorder = run(manifest, config, resumed)
    assert recorder.saved[-1]["step"] == 12
    assert min(saved["step"] for saved in recorder.saved) > lost_at
    for name, tensor in through.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_a_finished_learner_has_nothing_left_to_do(manifest: Manifest) -> None:
    config = configured(manifest, optimiser__epochs=1)
    done = learner(manifest, config)
    run(manifest, config, done)
    assert run(manifest, config, done).saved == []


def test_a_loss_that_is_not_a_number_stops_the_run(manifest: Manifest) -> None:
    config = configured(manifest)
    broken = learner(manifest, config)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    recorder = Recorder()
    with pytest.raises(HistillError, match=r"not a number by step 3 of epoch 0.*lower optimiser\.lr"):
        run(manifest, config, broken, recorder)
    assert recorder.saved == []  # what is saved stays usable


def gradients(manifest: Manifest, config: PretrainConfig, worker: int, workers: int, step: int) -> dict[str, Any]:
    """The gradient of one worker's share of a global batch, scaled as the loop scales it."""
    learns = learner(manifest, config)
    learns.model.eval()  # drop-path draws for a whole batch, so shares of it differ
    part = stream(manifest, "train", worker, workers)
    batch = list(part.training_epoch(0, seed=0, flips=True))[step]
    terms = task(config).loss(learns.model, batch)
    (terms.loss * batch.valid.sum() * workers / batch.planned).backward()
    return {name: parameter.grad for name, parameter in learns.model.named_parameters()}


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("padded", [False, True], ids=["full batch", "padded batch"])
def test_the_gradient_does_not_depend_on_the_number_of_workers(
    tmp_path: Path, tile_set: Callable[..., Manifest], workers: int, padded: bool
) -> None:
    manifest = tile_set(tmp_path, tiles=21, tile_px=32)  # 14 to train: two rows of padding, in the last batches
    config = configured(manifest, loss__dice=0.5, loss__hard=0.5)
    last = list(stream(manifest).training_epoch(0, seed=0, flips=True))[-1]
    assert last.planned < BATCH
    step = 3 if padded else 0
    alone = gradients(manifest, config, 0, 1, step)
    shares = [gradients(manifest, config, worker, workers, step) for worker in range(workers)]
    for name, expected in alone.items():
        joined = torch.stack([share[name] for share in shares]).mean(0)  # as DDP joins them
        assert (joined - expected).norm() < 2e-3 * expected.norm() + 1e-7, name
