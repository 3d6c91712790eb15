"""Scores and pictures of a model on held-out tiles."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from histill.artifacts.model_folder import ModelCard, build, save
from histill.config.common import Storage, Teacher
from histill.config.scoring import HeldOut
from histill.errors import InputError
from histill.evaluate.pictures import comparison_rows
from histill.evaluate.score import score_model
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.unit

STORAGE = Storage()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    def make(**changes: Any) -> str:
        values: dict[str, Any] = {
            "encoder": "csat_tiny",
            "decoder_channels": (16, 16, 8, 8, 8),
            "classes": ("background", "nucleus"),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.2, 0.2, 0.2),
            "tile_px": 64,
            "tile_mpp": 0.5,
            "size_px": 64,
            "tiles_digest": "tiles",
            "train_cases": "cases",
            "histill": "0",
        }
        card = ModelCard(**values | changes)
        folder = tmp_path_factory.mktemp("model")
        torch.manual_seed(0)
        save(str(folder), build(card), card)
        return str(folder)

    return make


def test_a_model_agrees_with_itself(manifest: Manifest, model: Callable[..., str]) -> None:
    folder = model()
    held_out = HeldOut(tiles=manifest.uri, split="train", reference=Teacher(model=folder), batch_size=6)
    score = score_model(folder, held_out, STORAGE)
    assert (score.tiles, score.corrupt) == (16, 0)
    assert score.miou == pytest.approx(1.0)
    assert score.reference.startswith("teacher ")
    assert score.tiles_digest == manifest.header.digest
    assert score.gmacs_with_attention >= score.gmacs > 0


@pytest.mark.parametrize("size_px", [32, 64])
def test_the_score_is_that_of_every_tile_once_whatever_the_batches(
    manifest: Manifest, model: Callable[..., str], size_px: int
) -> None:
    folder = model(size_px=size_px)
    scores = [
        score_model(folder, HeldOut(tiles=manifest.uri, split="train", batch_size=size), STORAGE) for size in (3, 16)
    ]
    assert scores[0] == scores[1]
    assert scores[0].reference == "masks"
    assert scores[0].class_dice.keys() == {"background", "nucleus"}
    assert 0 <= scores[0].dice < 0.9  # an untrained model


def test_a_small_student_and_its_teacher_see_the_same_tiles(manifest: Manifest, model: Callable[..., str]) -> None:
    """The student sees tiles at 32 px, the teacher the same at 64; against itself, a model would agree."""
    student, teacher = model(size_px=32), model()
    held_out = HeldOut(tiles=manifest.uri, split="train", reference=Teacher(model=teacher), batch_size=5)
    score = score_model(student, held_out, STORAGE)
    assert (score.tiles, score.size_px) == (16, 32)
    assert score.reference.startswith("teacher ")
    assert score == score_model(student, held_out.model_copy(update={"batch_size": 16}), STORAGE)


def test_an_undecodable_tile_is_left_out_and_counted(
    tmp_path: Path,
    tile_set: Callable[..., Manifest],
    spoil_tile: Callable[..., str],
    model: Callable[..., str],
) -> None:
    spoilt = tile_set(tmp_path)
    spoil_tile(spoilt, 2)
    held_out = HeldOut(tiles=spoilt.uri, split="train", batch_size=3, max_corrupt=1)
    score = score_model(model(), held_out, STORAGE)
    assert (score.tiles, score.corrupt) == (15, 1)
    with pytest.raises(InputError, match=r"tile case-0/2 .* max_corrupt allows 0"):
        score_model(model(), held_out.model_copy(update={"max_corrupt": 0}), STORAGE)


@pytest.mark.parametrize(
    ("changes", "held_out", "named"),
    [
        ({"tile_mpp": 0.25}, {}, "0.25 um/px"),
        ({"tile_px": 128}, {}, "128 px"),
        ({"classes": ("background", "gland")}, {"reference": Teacher(classical=True)}, "background, gland"),
        ({}, {"tiles": "nowhere"}, "nowhere holds no tile set"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    manifest: Manifest, model: Callable[..., str], changes: dict[str, Any], held_out: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        score_model(model(**changes), HeldOut(**{"tiles": manifest.uri} | held_out), STORAGE)


def test_missing_masks_are_refused(
    tmp_path: Path, tile_set: Callable[..., Manifest], model: Callable[..., str]
) -> None:
    unmasked = tile_set(tmp_path, masks=False)
    with pytest.raises(InputError, match=r"4 tiles of split 'test' .* have no mask"):
        score_model(model(), HeldOut(tiles=unmasked.uri), STORAGE)


@pytest.mark.parametrize(("rows", "size_px"), [(2, 64), (9, 32)])
@pytest.mark.parametrize("reference", [None, Teacher(classical=True)], ids=["masks", "teacher"])
def test_a_picture_has_a_row_for_each_tile(
    manifest: Manifest, model: Callable[..., str], rows: int, size_px: int, reference: Teacher | None
) -> None:
    held_out = HeldOut(tiles=manifest.uri, reference=reference, batch_size=3)
    picture = Image.open(io.BytesIO(comparison_rows(model(size_px=size_px), held_out, rows, STORAGE)))
    shown = min(rows, 4)
    assert picture.size == (810, round(90 * (3.1 * shown + 0.3)))
