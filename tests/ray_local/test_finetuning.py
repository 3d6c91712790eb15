"""Fine-tuning on Ray Train: from a pretrained run, on labels and on masks, with few cases."""

from collections.abc import Callable
from typing import Any

import pytest

from histill.artifacts import model_folder
from histill.config.common import Storage
from histill.config.finetune_student import FinetuneConfig
from histill.config.load import set_value, validate
from histill.config.score_model import HeldOut
from histill.errors import InputError
from histill.evaluate.score import score_model
from histill.local.ray_head import RayHead
from histill.local.s3 import S3Server
from histill.registry.mlflow_runs import open_run
from histill.tiles.manifest import Manifest
from histill.train.launch import Trained, train_run
from histill.train.prepare import prepare_run

pytestmark = pytest.mark.ray_local

STORAGE = Storage()


@pytest.fixture(scope="module")
def labeled(ray_local: RayHead, s3: S3Server, tile_set: Callable[..., Manifest]) -> Manifest:
    """48 tiles with labels and masks; 32 for training, from four cases."""
    return tile_set(f"s3://{s3.bucket}/finetuning/tiles", tiles=48, labels=True)


@pytest.fixture(scope="module")
def pretrained(two: Any) -> Trained:
    return two.trained


@pytest.fixture
def finetuning(small_run: dict[str, Any], labeled: Manifest) -> Callable[..., FinetuneConfig]:
    def make(name: str, changes: dict[str, Any]) -> FinetuneConfig:
        data = {key: value for key, value in small_run.items() if key != "teacher"}
        values = {"name": name, "data.tiles": labeled.uri, "data.batch_size": 8, "tracking.experiment": name}
        for key, value in (values | changes).items():
            data = set_value(data, key, value)
        return validate(FinetuneConfig, data, "the test")

    return make


def test_a_classifier_learns_from_a_pretrained_encoder_and_is_scored_alike_by_the_job(
    finetuning: Callable[..., FinetuneConfig], pretrained: Trained, labeled: Manifest
) -> None:
    changes = {"target": "classification", "encoder": pretrained.run, "optimizer.epochs": 12, "layer_decay": 0.8}
    changes |= {"optimizer.lr": 1e-3}  # the encoder has seen 16 tiles twice, and has much to learn
    trained = train_run(prepare_run(finetuning("classify", changes)), open_run)
    assert trained.metrics["val_balanced_accuracy"] == 1.0  # with or without nuclei
    _, card, _ = model_folder.load(trained.model, STORAGE)
    assert (card.kind, card.classes, card.decoder_channels) == ("classification", ("stroma", "tumour"), ())
    score = score_model(trained.run, HeldOut(tiles=labeled.uri, split="val", batch_size=3), STORAGE)
    for figure in ("balanced_accuracy", "macro_f1", "auroc", "calibration_error"):
        assert score.figures[figure] == pytest.approx(trained.metrics[f"val_{figure}"], abs=1e-6)
    assert score.tiles == 8


def test_a_segmenter_learns_from_few_cases_with_the_encoder_frozen(
    finetuning: Callable[..., FinetuneConfig], pretrained: Trained
) -> None:
    changes = {"target": "segmentation", "encoder": pretrained.run, "fraction": 0.5, "frozen": True}
    prepared = prepare_run(finetuning("segment", changes))
    assert prepared.cases is not None
    assert len(prepared.cases) == 2
    trained = train_run(prepared, open_run)
    assert trained.metrics["tiles"] == 16
    first, _, _ = model_folder.load(model_folder.resolve(pretrained.run, STORAGE), STORAGE)
    last, card, _ = model_folder.load(trained.model, STORAGE)
    assert card.kind == "segmentation"
    before, after = first.state_dict(), last.state_dict()
    moved = {name.split(".")[1] for name in after if not before[name].equal(after[name])}
    assert "decoder" in moved
    assert "encoder" not in moved


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"target": "classification", "student.encoder": "csat", "encoder": "pretrained"}, "student.encoder=csat_tiny"),
        ({"target": "classification", "classes": ("stroma", "fat")}, "the label 'tumour'"),
        ({"target": "classification", "encoder": "nowhere"}, "nowhere is neither a model folder"),
    ],
)
def test_what_does_not_fit_is_refused(
    finetuning: Callable[..., FinetuneConfig], pretrained: Trained, changes: dict[str, Any], named: str
) -> None:
    if changes.get("encoder") == "pretrained":
        changes = changes | {"encoder": pretrained.run}
    with pytest.raises(InputError, match=named) as caught:
        prepare_run(finetuning("refused", changes))
    assert "\n" not in str(caught.value)
