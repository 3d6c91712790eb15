"""A low-resolution student learns from a high-resolution teacher without labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from histill.artifacts import model_folder
from histill.config.common import Storage
from histill.config.distill_student import DistillConfig
from histill.config.load import set_value, validate
from histill.config.runs import RunConfig
from histill.config.train_teacher import TeacherConfig
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import write_manifest
from histill.tiles.whole_table import read_table
from histill.train.build import build_learner, build_streams
from histill.train.checkpoint import Learner, restore_checkpoint, save_checkpoint
from histill.train.loop import Hooks, train
from histill.train.prepare import prepare_run
from histill.train.spec import RunSpec

pytestmark = pytest.mark.behaviour

STORAGE = Storage()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    """48 tiles of 64 px with and without nuclei, labeled accordingly; 32 for training."""
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=48, tile_px=64, labels=True)


def run(
    prepared: RunSpec, manifest: Manifest, *, learner: Learner | None = None, stop_after: int | None = None
) -> tuple[Learner, list[dict[str, float]]]:
    """Train for at most `stop_after` epochs; returns the learner and each epoch's report."""
    learner = learner or build_learner(prepared, manifest, torch.device("cpu"))
    reports: list[dict[str, float]] = []

    class Stop(Exception):
        pass

    def save(metrics: dict[str, float]) -> None:
        reports.append(metrics)
        if stop_after is not None and len(reports) == stop_after:
            raise Stop

    try:
        streams = build_streams(prepared, manifest, 0, 1)
        train(learner, learner.model, prepared.build_task(), *streams, prepared.config, Hooks(lambda _: None, save))
    except Stop:
        pass
    return learner, reports


def keys(manifest: Manifest, folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": name,
        "runs": str(folder),
        "data": {"tiles": manifest.uri, "batch_size": 8},
        "optimizer": {"epochs": 12, "lr": 2e-3},
        "workers": {"count": 1},
    }
    for key, value in changes.items():
        data = set_value(data, key.replace("__", "."), value)
    return data


def configured(kind: type[RunConfig], data: dict[str, Any]) -> Any:
    return validate(kind, data, "the test")


@pytest.fixture(scope="module")
def teacher(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The paper's network, trained on labels at full resolution."""
    folder = tmp_path_factory.mktemp("teacher")
    data = keys(manifest, folder, "teacher", target="classification", network={"encoder": "resnet_gn"})
    prepared = prepare_run(configured(TeacherConfig, data))
    learner, reports = run(prepared, manifest)
    assert reports[-1]["val_balanced_accuracy"] == 1.0
    model_folder.save(str(folder), learner.shipped, prepared.card)
    return str(folder)


def without_labels(manifest: Manifest, folder: Path) -> Manifest:
    """The same tiles, with labels only in the validation split."""
    names = read_table(manifest)["label"].to_pylist()
    for row in manifest.rows_of("train"):
        names[row] = None
    column = read_table(manifest).schema.get_field_index("label")
    table = read_table(manifest).set_column(column, "label", pa.array(names, pa.string()))
    shards = [f"{manifest.uri}/{shard}" for shard in table["shard"].to_pylist()]
    at = table.schema.get_field_index("shard")
    return write_manifest(str(folder), table.set_column(at, "shard", pa.array(shards)), tile_px=64, mpp=0.5, ingest="")


def distillation(manifest: Manifest, teacher: str, folder: Path, **changes: Any) -> RunSpec:
    data = keys(manifest, folder, "student", teacher={"model": teacher}, **changes)
    return prepare_run(configured(DistillConfig, data))


def test_a_student_learns_from_the_teacher_alone(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    student = {"encoder": "csat_tiny", "size_px": 32}
    _, reports = run(distillation(manifest, teacher, tmp_path, student=student), manifest)
    assert reports[-1]["loss"] < 0.5 * reports[0]["loss"]
    assert reports[-1]["val_balanced_accuracy"] >= 0.85


def test_a_distillation_goes_on_where_it_stopped(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "student": {"encoder": "csat_tiny", "size_px": 32},
        "loss": {"many_features": {}},
        "optimizer__epochs": 3,
    }
    prepared = distillation(manifest, teacher, tmp_path, **changes)
    whole, _ = run(prepared, manifest)
    stopped, _ = run(prepared, manifest, stop_after=1)
    (tmp_path / "checkpoint").mkdir()
    save_checkpoint(str(tmp_path / "checkpoint"), stopped, prepared.card)
    resumed = build_learner(prepared, manifest, torch.device("cpu"))
    restore_checkpoint(str(tmp_path / "checkpoint"), resumed)
    resumed, reports = run(prepared, manifest, learner=resumed)
    assert [report["epochs"] for report in reports] == [2, 3]
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, msg=name)
    kept, _, _ = model_folder.load(str(tmp_path / "checkpoint"), STORAGE)
    assert not any("projection" in name or "mixture" in name for name in kept.state_dict())
