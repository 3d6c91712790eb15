"""A boundary channel from end to end in one process: teacher, responses, students, scores, fine-tuning."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from histill.artifacts.model_folder import load, save
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage, Teacher
from histill.config.finetune_student import FinetuneConfig
from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig
from histill.config.runs import RunConfig
from histill.config.score_model import HeldOut
from histill.config.train_teacher import TeacherConfig
from histill.evaluate.score import score_model
from histill.stream.cached_views import CachedViews
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tasks.boundary import add_boundary
from histill.teachers.cache import finish_cache
from histill.teachers.shard_responses import ResponseJob, write_shard_responses
from histill.teachers.teacher import load_teacher
from histill.tiles.manifest import Manifest
from histill.tiles.shards import shards_of
from histill.train.build import build_learner, build_streams
from histill.train.loop import Hooks, train
from histill.train.prepare import prepare_run
from histill.train.spec import RunSpec

pytestmark = pytest.mark.behaviour

STORAGE, SIDE, WIDTH = Storage(), 64, 3
NETWORK = {"encoder": "csat_tiny", "decoder_channels": (32, 16, 16, 8, 8)}
CLASSES = ("background", "nucleus", "boundary")

C = TypeVar("C", bound=RunConfig)


@dataclass(frozen=True)
class Place:
    """The tile set and the folder of a module's runs."""

    manifest: Manifest
    folder: Path

    def configured(self, kind: type[C], name: str, epochs: int, **changes: Any) -> C:
        data = {
            "name": name,
            "runs": str(self.folder / "runs"),
            "data": {"tiles": self.manifest.uri, "batch_size": 4},
            "optimizer": {"epochs": epochs, "lr": 5e-3, "weight_decay": 0.0},
            "workers": {"count": 1},
        }
        return validate(kind, data | changes, "the test")

    def trained(self, prepared: RunSpec) -> tuple[str, dict[str, float]]:
        """Train; returns the model folder and the last epoch's metrics."""
        learner = build_learner(prepared, self.manifest, torch.device("cpu"))
        training, validation = build_streams(prepared, self.manifest, 0, 1)
        saved: list[dict[str, float]] = []
        hooks = Hooks(lambda snapshot: None, saved.append)
        train(learner, learner.model, prepared.build_task(), training, validation, prepared.config, hooks)
        folder = self.folder / prepared.config.name
        folder.mkdir()
        save(str(folder), learner.shipped, prepared.card)
        return str(folder), saved[-1]

    def boundary_iou(self, model: str) -> float:
        """Score the raw predictions of the last class on the split "test", which is not used for training."""
        network, card, _ = load(model, STORAGE)
        assert card.classes == CLASSES
        stream = TileStream(
            manifest=self.manifest,
            source=TileSource(self.manifest.uri, self.manifest.header.digest, STORAGE, masks=True),
            split="test",
            views=Views(SIDE),
            batch_size=4,
            worker=0,
            workers=1,
        )
        both = either = 0
        with torch.inference_mode():
            for batch in stream.exact_pass():
                assert batch.mask is not None
                said = network(batch.student.float()).argmax(1) == 2
                there = add_boundary(batch.mask.long(), WIDTH, 2) == 2
                both, either = both + int((said & there).sum()), either + int((said | there).sum())
        return both / either


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Place:
    folder = tmp_path_factory.mktemp("boundary")
    return Place(tile_set(folder / "tiles", tiles=24, tile_px=SIDE), folder)  # 16 for training


@pytest.fixture(scope="module")
def teacher(place: Place) -> tuple[str, dict[str, float]]:
    config = place.configured(TeacherConfig, "teacher", 16, network=NETWORK, boundary_px=WIDTH)
    return place.trained(prepare_run(config))


def cached(place: Place, model: str) -> str:
    """A response cache of the teacher, as jobs/cache_responses.py writes it."""
    uri = str(place.folder / "responses")
    data = {"tiles": place.manifest.uri, "teacher": {"model": model}, "output": uri}
    network = load_teacher(Teacher(model=model), 0.5, STORAGE)
    job = ResponseJob(validate(CacheConfig, data, "the test"), CachedViews(uri, network.outputs))
    for shard in shards_of(place.manifest):
        write_shard_responses(network, place.manifest, shard, job)
    finish_cache(job, network, place.manifest, 0)
    return uri


def test_a_teacher_learns_the_boundary_and_is_scored_without_it(
    place: Place, teacher: tuple[str, dict[str, float]]
) -> None:
    model, metrics = teacher
    assert place.boundary_iou(model) > 0.5
    assert metrics["val_dice"] > 0.85
    for reference in (None, Teacher(classical=True), Teacher(model=model)):
        score = score_model(model, HeldOut(tiles=place.manifest.uri, reference=reference), STORAGE)
        assert score.classes.keys() == {"background", "nucleus"}
        assert score.figures["dice"] == score.classes["nucleus"]["dice"] > 0.85


def test_students_learn_the_boundary_from_cached_soft_and_live_hard_answers(
    place: Place, teacher: tuple[str, dict[str, float]]
) -> None:
    model, _ = teacher
    answers: dict[str, dict[str, Any]] = {
        "soft": {"responses": cached(place, model)},
        "hard": {"loss": {"soft_cross_entropy": {"weight": 0.0}, "hard_cross_entropy": {"weight": 1.0}}},
    }
    for name, changes in answers.items():
        config = place.configured(PretrainConfig, name, 20, student=NETWORK, teacher={"model": model}, **changes)
        student, metrics = place.trained(prepare_run(config))
        assert place.boundary_iou(student) > 0.3, name
        assert metrics["val_dice"] > 0.85, name
        assert score_model(student, HeldOut(tiles=place.manifest.uri), STORAGE).figures["dice"] > 0.85, name


def test_an_encoder_that_knows_the_boundary_is_fine_tuned_without_it(
    place: Place, teacher: tuple[str, dict[str, float]]
) -> None:
    model, _ = teacher
    config = place.configured(FinetuneConfig, "tuned", 6, target="segmentation", student=NETWORK, encoder=model)
    tuned, metrics = place.trained(prepare_run(config))
    _, card, _ = load(tuned, STORAGE)
    assert card.classes == ("background", "tissue")
    assert metrics["val_dice"] > 0.5
