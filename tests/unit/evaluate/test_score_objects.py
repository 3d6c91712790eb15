"""Scores of objects: those of every tile once, against masks and against a teacher."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from histill.artifacts.model_folder import ModelCard, build, save
from histill.config.common import Storage, Teacher
from histill.config.objects import Objects
from histill.config.score_model import HeldOut
from histill.errors import InputError
from histill.evaluate.evaluator import Evaluator
from histill.evaluate.score import score_model
from histill.metrics.objects import count_objects, object_metrics
from histill.objects.instances import label_mask
from histill.objects.watershed import separate_objects
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.unit

STORAGE = Storage()
MPP = 0.5


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    def make(**changes: Any) -> str:
        values: dict[str, Any] = {
            "encoder": "csat_tiny", "decoder_channels": (16, 16, 8, 8, 8), "classes": ("background", "nucleus"),
            "mean": (0.5,) * 3, "std": (0.2,) * 3, "tile_px": 64, "tile_mpp": MPP, "size_px": 64,
            "tiles_digest": "tiles", "train_cases": (), "histill": "0",
        }  # fmt: skip
        card = ModelCard(**values | changes)
        folder = tmp_path_factory.mktemp("model")
        torch.manual_seed(0)
        save(str(folder), build(card), card)
        return str(folder)

    return make


@pytest.mark.parametrize("classes", [("background", "nucleus"), ("background", "nucleus", "boundary")])
def test_the_objects_of_every_tile_count_once_whatever_the_batches(
    manifest: Manifest, model: Callable[..., str], classes: tuple[str, ...]
) -> None:
    folder, objects = model(classes=classes), Objects(min_um2=2.0)
    held_out = HeldOut(tiles=manifest.uri, split="train", objects=objects)
    scores = [score_model(folder, held_out.model_copy(update={"batch_size": size}), STORAGE) for size in (3, 16)]
    assert repr(scores[0]) == repr(scores[1])  # with nan where a class has no objects
    examiner, counts = Evaluator.load(folder, held_out, STORAGE), []
    for batch in examiner.batches(examiner.rows):
        said = examiner.logits(batch.student).softmax(1).numpy()
        for probabilities, mask in zip(said, examiner.reference(batch).numpy(), strict=True):
            found = separate_objects(probabilities, boundary=len(classes) == 3, mpp=MPP)
            one, other = (each.keep(each.areas >= 8) for each in (found, label_mask(mask)))
            counts.append(count_objects(one, other, 2))
    figures = object_metrics(np.stack(counts), np.ones((1, 16)))
    assert {name: scores[0].figures[name] for name in figures} == pytest.approx(
        {name: float(values[0]) for name, values in figures.items()}
    )
    assert np.stack(counts)[..., 2].sum() > 10  # the reference has objects
    nuclei = scores[0].classes["nucleus"]
    assert {name: nuclei[name] for name in figures} == {name: scores[0].figures[name] for name in figures}
    assert np.isnan(scores[0].classes["background"]["pq"])


def test_a_model_finds_its_own_objects(manifest: Manifest, model: Callable[..., str]) -> None:
    folder = model()
    held_out = HeldOut(tiles=manifest.uri, split="train", reference=Teacher(model=folder), objects=Objects(min_um2=0.5))
    score = score_model(folder, held_out, STORAGE, bootstrap_samples=20)
    assert [score.figures[name] for name in ("pq", "aji", "object_f1")] == pytest.approx([1, 1, 1])
    assert score.intervals["pq"] == pytest.approx((1, 1))


def test_a_classifier_has_no_objects(manifest: Manifest, model: Callable[..., str]) -> None:
    classifier = model(kind="classification", decoder_channels=(), classes=("stroma", "tumour"))
    with pytest.raises(InputError, match=r"^held_out\.objects is for models that mark pixels"):
        score_model(classifier, HeldOut(tiles=manifest.uri, objects=Objects()), STORAGE)
    assert "pq" not in score_model(model(), HeldOut(tiles=manifest.uri), STORAGE).figures
