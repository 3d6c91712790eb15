"""Multi-label tiles: read, scored, trained on and distilled class by class."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from histill.artifacts.model_folder import ModelCard, build, save
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.config.distill_student import DistillConfig
from histill.config.load import set_value, validate
from histill.config.runs import RunConfig, SupervisedLoss
from histill.config.score_model import HeldOut
from histill.config.train_teacher import TeacherConfig
from histill.errors import InputError
from histill.evaluate.score import score_model
from histill.losses.logits import bernoulli_kl, binary_cross_entropy
from histill.metrics.weighted import multi_label_metrics
from histill.outputs import OutputSpec
from histill.storage.uris import join
from histill.stream.cached_views import CachedViews
from histill.tasks.training_task import TrainingTask
from histill.teachers.cache import address, finish_cache
from histill.teachers.shard_responses import ResponseJob, write_shard_responses
from histill.teachers.teacher import load_teacher
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import read_manifest, write_manifest
from histill.tiles.shards import shards_of
from histill.tiles.whole_table import read_table
from histill.train.build import build_streams
from histill.train.loop import evaluate
from histill.train.prepare import prepare_run

pytestmark = pytest.mark.unit

STORAGE = Storage()
CLASSES = ("necrosis", "stroma", "tumour")
LABELS = ("stroma|tumour", "stroma", "necrosis | tumour", "tumour")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    """24 tiles of 64 px, alternately with one and two labels; the first has none."""
    folder = tmp_path_factory.mktemp("tiles")
    plain = tile_set(folder, tiles=24, tile_px=64, labels=True)
    names: list[str | None] = [LABELS[row % 4] for row in range(24)]
    names[0] = None
    column = read_table(plain).schema.get_field_index("label")
    table = read_table(plain).set_column(column, "label", pa.array(names, pa.string()))
    return write_manifest(str(folder), table, tile_px=64, mpp=0.5, ingest="", storage=STORAGE)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    card = ModelCard(
        kind="classification", multi_label=True, encoder="csat_tiny", decoder_channels=(), classes=CLASSES,
        mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), tile_px=64, tile_mpp=0.5, size_px=64, tiles_digest="tiles",
        train_cases=(), histill="0",
    )  # fmt: skip
    torch.manual_seed(2)
    save(str(folder), build(card), card)
    return str(folder)


def configured(kind: type[RunConfig], manifest: Manifest, runs: Path, **changes: Any) -> Any:
    data: dict[str, Any] = {"name": "run", "runs": str(runs), "data": {"tiles": manifest.uri, "batch_size": 4}}
    for key, value in changes.items():
        data = set_value(data, key.replace("__", "."), value)
    return validate(kind, data, "the test")


def test_labels_are_separated(manifest: Manifest) -> None:
    assert manifest.label_names(multi_label=True) == CLASSES
    found = manifest.multi_labels_among(CLASSES, np.arange(1, 24))[np.arange(24)]
    assert found[0].tolist() == [-1, -1, -1]
    assert found[1:5].tolist() == [[0, 1, 0], [1, 0, 1], [0, 0, 1], [0, 1, 1]]
    with pytest.raises(InputError, match="has no label"):
        manifest.multi_labels_among(CLASSES, np.arange(24))
    with pytest.raises(InputError, match=r"has the label 'necrosis \| tumour'"):
        manifest.multi_labels_among(("stroma", "tumour"), np.arange(1, 24))
    assert (manifest.multi_labels_among(CLASSES, np.arange(24), needed=False)[np.arange(1)] == -1).all()


def once(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    found = multi_label_metrics(logits.numpy(), labels.numpy(), np.ones((1, len(labels))))
    return {name: float(value[0]) for name, value in found.items()}


@given(st.integers(0, 99), st.integers(20, 60), st.integers(1, 4))
def test_the_figures_are_those_of_their_definitions(seed: int, tiles: int, classes: int) -> None:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (tiles, classes), generator=random)
    labels[0], labels[1] = 0, 1
    logits = torch.randn(tiles, classes, generator=random, dtype=torch.float64) + labels
    found = SimpleNamespace(**once(logits, labels))
    columns = [(labels[:, k].numpy(), logits[:, k].numpy()) for k in range(classes)]
    assert found.auroc == pytest.approx(np.mean([roc_auc_score(y, z) for y, z in columns]))
    assert found.macro_f1 == pytest.approx(np.mean([f1_score(y, z > 0) for y, z in columns]))
    assert found.balanced_accuracy == pytest.approx(np.mean([balanced_accuracy_score(y, z > 0) for y, z in columns]))


def test_a_class_without_both_has_no_part_in_the_means() -> None:
    labels = torch.tensor([[0, 1], [0, 0], [0, 1]])
    logits = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0]])
    found = once(logits, labels)
    assert (found["balanced_accuracy"], found["macro_f1"], found["auroc"]) == (1.0, 1.0, 1.0)


def test_a_teacher_of_several_labels_is_taught_class_by_class(manifest: Manifest, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"target": "classification", "multi_label": True, "network__encoder": "csat_tiny"}
    with pytest.raises(InputError, match="has no label"):
        prepare_run(configured(TeacherConfig, manifest, tmp_path, **changes))
    prepared = prepare_run(configured(TeacherConfig, manifest, tmp_path, **changes, data__train="val"))
    assert (prepared.card.multi_label, prepared.card.classes) == (True, CLASSES)
    task = prepared.build_task()
    assert task == TrainingTask(OutputSpec("classification", CLASSES, multi_label=True), SupervisedLoss(dice=None))
    model = prepared.build_model()
    training, validation = build_streams(prepared, manifest, 0, 1)
    batch = next(training.training_epoch(0, seed=0))
    assert batch.label is not None
    assert batch.label.shape == (4, 3)
    expected = binary_cross_entropy(model(batch.student.float()), batch.label, batch.valid)
    torch.testing.assert_close(task.loss(model, batch).loss, expected)
    figures = evaluate(model, task, validation, torch.device("cpu"))
    assert set(figures) == {"balanced_accuracy", "macro_f1", "auroc", "calibration_error"}


def cached(manifest: Manifest, teacher: str, out: Path) -> str:
    keys = {"tiles": manifest.uri, "teacher": {"model": teacher}, "output": str(out)}
    config = validate(CacheConfig, keys, "the test")
    made = load_teacher(config.teacher, 0.5, STORAGE)
    views = CachedViews(join(config.output, address(made.digest, manifest.header.digest)), made.outputs)
    job = ResponseJob(config, views)
    for shard in shards_of(manifest):
        write_shard_responses(made, manifest, shard, job)
    finish_cache(job, made, manifest, 0)
    return views.uri


@pytest.mark.parametrize("from_cache", [False, True])
def test_a_student_is_held_against_each_answer_by_itself(
    manifest: Manifest, teacher: str, tmp_path: Path, from_cache: bool
) -> None:
    changes: dict[str, Any] = {
        "teacher": {"model": teacher},
        "student": {"encoder": "csat_tiny", "size_px": 32},
        "loss": {"features": None, "cross_entropy": {"smoothing": 0.1}},
        "data__augment__flips": False,
    }
    if from_cache:
        changes["responses"] = cached(manifest, teacher, tmp_path)
    prepared = prepare_run(configured(DistillConfig, manifest, tmp_path, **changes))
    assert prepared.card.multi_label
    assert (prepared.source.responses is not None) == from_cache
    assert not prepared.scored_by_teacher
    labels = prepared.read_labels(manifest)
    assert labels is not None
    assert labels[np.arange(2)].tolist() == [[-1, -1, -1], [0, 1, 0]]
    model, task = prepared.build_model(), prepared.build_task()
    training, _ = build_streams(prepared, manifest, 0, 1)
    batch = next(training.training_epoch(0, seed=0))
    whole = next(
        iter(build_streams(prepare_whole(manifest, teacher, tmp_path), manifest, 0, 1)[0].training_epoch(0, seed=0))
    )
    answers = load_teacher(prepared.config.teacher, 0.5, STORAGE).respond(whole.student)  # type: ignore[attr-defined]
    terms = task.loss(model.train(), batch)
    with torch.no_grad():
        said = model(batch.student.float()).logits
    torch.testing.assert_close(
        terms.parts["divergence"], bernoulli_kl(said, answers, batch.valid, 1.0), atol=0.02, rtol=0
    )
    assert batch.label is not None
    torch.testing.assert_close(terms.parts["cross_entropy"], binary_cross_entropy(said, batch.label, batch.valid, 0.1))


def prepare_whole(manifest: Manifest, teacher: str, runs: Path) -> Any:
    """As above at the tiles' own size, which is the teacher's input size."""
    changes: dict[str, Any] = {
        "teacher": {"model": teacher},
        "student": {"encoder": "csat_tiny"},
        "loss": {"features": None},
        "data__augment__flips": False,
    }
    return prepare_run(configured(DistillConfig, manifest, runs, **changes))


@pytest.mark.parametrize("changes", [{"loss__decoupled": {}}, {"data__balance": "response"}])
def test_what_needs_classes_that_exclude_each_other_is_refused(
    manifest: Manifest, teacher: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    keys: dict[str, Any] = {"teacher": {"model": teacher}, "student": {"encoder": "csat_tiny", "size_px": 32}}
    keys |= {"responses": cached(manifest, teacher, tmp_path), "loss": {"features": None}}
    with pytest.raises(InputError, match="exclude each other"):
        prepare_run(configured(DistillConfig, manifest, tmp_path, **keys, **changes))


def test_a_model_of_several_labels_is_scored_class_by_class(manifest: Manifest, teacher: str) -> None:
    score = score_model(teacher, HeldOut(tiles=manifest.uri), STORAGE)
    assert (score.kind, score.tiles, score.confusion) == ("multi_label", 4, ())
    assert score.classes.keys() == set(CLASSES)
    assert all({"tiles", "recall", "specificity"} == each.keys() for each in score.classes.values())
    assert read_manifest(manifest.uri, STORAGE).header.digest == score.tiles_digest
