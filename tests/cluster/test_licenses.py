"""A student of a teacher that forbids commercial use is refused where that is asked for: from cache to registry."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mlflow import MlflowClient
from timm.models import save_for_hf

from histill.artifacts.model_folder import save
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage, Tracking
from histill.config.finetune_student import FinetuneConfig
from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig
from histill.config.promote_model import PromoteConfig
from histill.config.runs import RunConfig
from histill.registry.gates import format_gates
from histill.registry.promotion import Promotion, promote
from histill.teachers import cache as caching
from histill.teachers.cache import cache_responses
from histill.teachers.encoder_presets import PRESETS
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import read_manifest
from histill.train.build import build_learner, build_streams
from histill.train.loop import Hooks, train
from histill.train.prepare import prepare_run

pytestmark = pytest.mark.cluster

PRESET = "kaiko-vits16"
LICENSE = PRESETS[PRESET].license


@pytest.fixture
def tiles(tmp_path: Path, tile_set: Callable[..., Manifest]) -> Manifest:
    (tmp_path / "tiles").mkdir()
    return tile_set(tmp_path / "tiles", tiles=24, tile_px=64, labels=True)


@pytest.fixture
def teacher(tmp_path: Path) -> dict[str, Any]:
    """A network of the preset's kind, with random weights and one block."""
    shape = {"img_size": 32, "embed_dim": 384, "depth": 1}
    model = timm.create_model("vit_small_patch16_224", num_classes=0, **shape)
    save_for_hf(model, tmp_path / "vit", safe_serialization=True)
    return {
        "encoder": {
            "folder": str(tmp_path / "vit"), "preset": PRESET, "size_px": 32, "tile_px": 64, "options": shape,
        }
    }  # fmt: skip


def train_model(config: RunConfig, folder: Path) -> str:
    """The model that a run of `config` makes, here in one process."""
    spec = prepare_run(config)
    manifest = read_manifest(config.data.tiles, Storage())
    learner = build_learner(spec, manifest, torch.device("cpu"))
    training, validation = build_streams(spec, manifest, 0, 1)
    hooks = Hooks(show=lambda snapshot: None, save=lambda metrics: None)
    train(learner, learner.model, spec.build_task(), training, validation, config, hooks)
    folder.mkdir()
    save(str(folder), learner.shipped, spec.card)
    return str(folder)


@pytest.fixture
def student(tiles: Manifest, teacher: dict[str, Any], tmp_path: Path, in_process: Callable[..., None]) -> str:
    """A classifier whose encoder learned from the teacher's cached embeddings."""
    in_process(caching)
    data = {"tiles": tiles.uri, "teacher": teacher, "output": str(tmp_path / "caches")}
    cached = cache_responses(validate(CacheConfig, data, "the test"))
    keys = {
        "runs": str(tmp_path / "runs"), "data": {"tiles": tiles.uri, "batch_size": 4}, "optimizer": {"epochs": 1},
        "student": {"encoder": "resnet_gn", "size_px": 32},
    }  # fmt: skip
    learned = {"name": "encoder", "embeddings": {"k": {"responses": cached.uri}}, **keys}
    encoder = train_model(validate(PretrainConfig, learned, "the test"), tmp_path / "encoder")
    tuned = {"name": "tuned", "target": "classification", "encoder": encoder, **keys}
    return train_model(validate(FinetuneConfig, tuned, "the test"), tmp_path / "tuned")


def test_a_student_of_a_teacher_that_forbids_commercial_use_is_refused_where_that_is_asked_for(
    student: str, teacher: dict[str, Any], tiles: Manifest, config: Tracking, client: MlflowClient, name: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    def promoting(**rules: Any) -> Promotion:
        gates = {"bootstrap_samples": 100, "beat_constant": False, "license": rules}
        data = {"model": student, "held_out": {"tiles": tiles.uri, "split": "test"}, "gates": gates}
        keys = {"registered_name": name, "tracking": config.model_dump(), **data}
        return promote(validate(PromoteConfig, keys, "the test"))

    label = f"encoder teacher {teacher['encoder']['folder']} ({PRESET})"
    refused = promoting(commercial=True)
    assert refused.decision == "refused"
    (gate,) = [each for each in refused.gates if not each.passed]
    assert (gate.name, gate.value) == ("commercial use", 1)
    assert gate.note == (
        f"{LICENSE.name} of {label} forbids commercial use of models that it taught ({LICENSE.source})"
    )
    assert gate.note in format_gates(refused.gates)
    assert not client.get_registered_model(name).aliases
    version = client.get_model_version(name, "1")
    assert version.tags["taught_by.licenses"] == LICENSE.name
    assert version.tags["taught_by.commercial_use"] == "forbidden"
    files = Path(client.download_artifacts(version.run_id, "exports", str(tmp_path)))
    (taught,) = json.loads((files / "interface.json").read_text())["taught_by"]
    assert taught == {"name": label, "license": LICENSE.model_dump()}
    assert (
        f"- taught by: {label}, {LICENSE.name}, commercial use of this model forbidden ("
        in (files / "README.md").read_text()
    )

    bought = {"name": "contract 7", "commercial": True, "source": "https://example.org/7"}
    accepted = promoting(commercial=True, stated={label: bought})
    assert accepted.decision == "promoted"
    assert client.get_registered_model(name).aliases == {"champion": "1"}
