"""Resolution distillation on Ray from a classifier: live with every term, and with cached responses."""

from collections.abc import Callable
from typing import Any

import pytest

from histill.artifacts import model_folder
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.config.distill_student import DistillConfig
from histill.config.load import set_value, validate
from histill.config.runs import RunConfig
from histill.config.score_model import HeldOut
from histill.config.train_teacher import TeacherConfig
from histill.evaluate.score import score_model
from histill.local.ray_head import RayHead
from histill.local.s3 import S3Server
from histill.losses.loss import Loss
from histill.registry.mlflow_runs import open_run
from histill.teachers.cache import cache_responses
from histill.tiles.manifest import Manifest
from histill.train.launch import Trained, train_run
from histill.train.prepare import prepare_run

pytestmark = pytest.mark.ray_local
OF_EMBEDDINGS = {name for name in Loss.model_fields if name.startswith("embedding_") or name == "tokens"}
NOT_FOR_TILES = {"soft_dice", "dice", "deep", *OF_EMBEDDINGS}

STORAGE = Storage()
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def labeled(ray_local: RayHead, s3: S3Server, tile_set: Callable[..., Manifest]) -> Manifest:
    """48 tiles of 64 px with labels; 32 for training, from four cases."""
    return tile_set(f"s3://{s3.bucket}/distilling/tiles", tiles=48, labels=True, masks=False)


@pytest.fixture(scope="module")
def configured(small_run: dict[str, Any], labeled: Manifest) -> Make:
    def make(kind: type[RunConfig], name: str, changes: dict[str, Any]) -> Any:
        data = {key: value for key, value in small_run.items() if key not in ("teacher", "student")}
        values = {"name": name, "data.tiles": labeled.uri, "data.batch_size": 8, "tracking.experiment": name}
        for key, value in (values | changes).items():
            data = set_value(data, key, value)
        return validate(kind, data, "the test")

    return make


@pytest.fixture(scope="module")
def teacher(configured: Make) -> Trained:
    changes = {"target": "classification", "network": {"encoder": "resnet_gn"}, "optimizer.epochs": 8}
    trained = train_run(prepare_run(configured(TeacherConfig, "high", changes)), open_run)
    assert trained.metrics["val_balanced_accuracy"] == 1.0  # with or without nuclei
    return trained


def test_all_terms_on_two_workers(configured: Make, teacher: Trained, labeled: Manifest) -> None:
    changes: dict[str, Any] = {
        "teacher": {"model": teacher.run},
        "student": {"encoder": "csat_tiny", "size_px": 32},
        "loss": {name: {} for name in Loss.model_fields if name not in NOT_FOR_TILES},
        "labeled": 0.25,
    }
    trained = train_run(prepare_run(configured(DistillConfig, "low", changes)), open_run)
    assert trained.metrics["tiles"] == 32
    _, card, _ = model_folder.load(trained.model, STORAGE)
    assert (card.kind, card.size_px, card.classes) == ("classification", 32, ("stroma", "tumour"))
    score = score_model(trained.run, HeldOut(tiles=labeled.uri, split="val"), STORAGE)
    assert score.figures["balanced_accuracy"] == pytest.approx(trained.metrics["val_balanced_accuracy"], abs=1e-6)


def test_cached_answers_and_maps_teach_without_the_teacher(
    configured: Make, teacher: Trained, labeled: Manifest, s3: S3Server
) -> None:
    keys = {
        "tiles": labeled.uri,
        "teacher": {"model": teacher.run},
        "output": f"s3://{s3.bucket}/distilling/responses",
        "views": 4,
        "augment": {"flips": True},
        "layer": "layer4",
        "workers": {"count": 1, "cpus": 0.5},
    }
    cached = cache_responses(validate(CacheConfig, keys, "the test"))
    assert (cached.header.dense, cached.header.map_shape) == (False, (256, 2, 2))
    changes: dict[str, Any] = {
        "teacher": {"model": teacher.run},
        "responses": cached.uri,
        "student": {"encoder": "csat_tiny", "size_px": 32},
        "data.balance": "response",
        "data.augment.flips": False,
        "optimizer.epochs": 12,
    }
    trained = train_run(prepare_run(configured(DistillConfig, "from-cache", changes)), open_run)
    assert trained.metrics["val_balanced_accuracy"] >= 0.85
