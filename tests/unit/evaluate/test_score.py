"""Scores and pictures of a model on held-out tiles."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from histill.artifacts.model_folder import ModelCard, build, save
from histill.config.common import Storage, Teacher, Workers
from histill.config.score_model import HeldOut
from histill.errors import InputError
from histill.evaluate import evaluator
from histill.evaluate.evaluator import Evaluator
from histill.evaluate.pictures import draw_tiles
from histill.evaluate.predictions import Predictions
from histill.evaluate.score import score_model
from histill.evaluate.shown_tiles import spread_tiles
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import write_manifest
from histill.tiles.masks import IGNORED
from histill.tiles.whole_table import read_table

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
            "train_cases": (),
            "histill": "0",
        }
        card = ModelCard(**values | changes)
        folder = tmp_path_factory.mktemp("model")
        torch.manual_seed(0)
        save(str(folder), build(card), card)
        return str(folder)

    return make


def picture(folder: str, held_out: HeldOut, count: int) -> bytes:
    examiner = Evaluator.load(folder, held_out, STORAGE)
    return draw_tiles(examiner, spread_tiles(examiner, count))


def test_a_model_agrees_with_itself(manifest: Manifest, model: Callable[..., str]) -> None:
    folder = model()
    held_out = HeldOut(tiles=manifest.uri, split="train", reference=Teacher(model=folder), batch_size=6)
    score = score_model(folder, held_out, STORAGE)
    assert (score.tiles, score.corrupt) == (16, 0)
    assert score.figures["miou"] == pytest.approx(1.0)
    assert score.reference.startswith("teacher ")
    assert score.tiles_digest == manifest.header.digest
    assert score.gmacs_with_attention >= score.gmacs > 0


def test_an_engine_gives_the_same_score(
    manifest: Manifest, write_small_model: Callable[[str, Path], str], node: Storage, tmp_path: Path
) -> None:
    from histill.evaluate.examine import examine

    folder = write_small_model("segmentation", tmp_path)
    held_out = HeldOut(tiles=manifest.uri, split="train", reference=Teacher(classical=True), batch_size=6)
    plain, other = (examine(folder, held_out, node, engine=engine) for engine in ("torch", "onnxruntime"))
    assert (plain.examiner.answer, other.examiner.answer is None) == (None, False)
    assert plain.answers.said.sum() == other.answers.said.sum()
    assert abs(plain.answers.said - other.answers.said).sum() <= 2e-5 * plain.answers.said.sum()


def test_embeddings_are_scored_by_torch(manifest: Manifest, model: Callable[..., str]) -> None:
    from histill.evaluate.examine import examine

    folder = model(kind="encoder", decoder_channels=(), classes=())
    with pytest.raises(
        InputError, match="engine=openvino runs models with classes, and embeddings are scored by torch"
    ):
        examine(folder, HeldOut(tiles=manifest.uri), STORAGE, engine="openvino")


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
    assert scores[0].classes.keys() == {"background", "nucleus"}
    assert 0 <= scores[0].figures["dice"] < 0.9  # an untrained model


def test_answers_of_tasks_outlive_their_ray(
    manifest: Manifest, model: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large arrays lie in its memory, which goes when it is shut down."""
    parts: list[Predictions] = []

    @contextmanager
    def connect() -> Iterator[None]:
        yield
        for part in parts:
            for array in (part.rows, part.said, part.truth, part.stains):
                array.fill(0)

    def map_tasks(function: Callable[[Any], Predictions], items: list[Any], **_: Any) -> Iterator[Predictions]:
        for item in items:
            parts.append(function(item))
            yield parts[-1]

    monkeypatch.setattr(evaluator, "connect_cluster", connect)
    monkeypatch.setattr(evaluator, "map_tasks", map_tasks)
    folder, held_out = model(), HeldOut(tiles=manifest.uri, split="train", reference=Teacher(classical=True))
    here = score_model(folder, held_out, STORAGE)
    there = score_model(folder, held_out, STORAGE, workers=Workers(count=2))
    assert parts
    assert there.figures == here.figures


def test_a_small_student_and_its_teacher_see_the_same_tiles(manifest: Manifest, model: Callable[..., str]) -> None:
    """The student sees tiles at 32 px, the teacher the same at 64; against itself, a model would agree."""
    student, teacher = model(size_px=32), model()
    held_out = HeldOut(tiles=manifest.uri, split="train", reference=Teacher(model=teacher), batch_size=5)
    score = score_model(student, held_out, STORAGE)
    assert (score.tiles, score.size_px) == (16, 32)
    assert score.reference.startswith("teacher ")
    assert score == score_model(student, held_out.model_copy(update={"batch_size": 16}), STORAGE)


def test_a_pixel_that_a_mask_ignores_is_in_no_figure(
    tmp_path: Path, tile_set: Callable[..., Manifest], mark_mask: Callable[..., str], model: Callable[..., str]
) -> None:
    held, folder = tile_set(tmp_path), model()
    held_out = HeldOut(tiles=held.uri, split="train", batch_size=5)
    whole = np.array(score_model(folder, held_out, STORAGE).confusion)
    mark_mask(held, 2, IGNORED)
    score = score_model(folder, held_out, STORAGE)
    counts = np.array(score.confusion)
    assert sorted((whole - counts).ravel().tolist()) == [0, 0, 0, 1]
    hit, missed = counts[1, 1], counts[0, 1] + counts[1, 0]
    assert score.figures["dice"] == pytest.approx(2 * hit / (2 * hit + missed))
    assert picture(folder, held_out, 3).startswith(b"\x89PNG")


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


BOUNDED = ("background", "nucleus", "boundary")


@pytest.mark.parametrize("kind", ["masks", "classical", "without a boundary", "with one"])
def test_a_boundary_is_scored_as_what_it_bounds(manifest: Manifest, model: Callable[..., str], kind: str) -> None:
    folder = model(classes=BOUNDED)
    references = {
        "masks": None,
        "classical": Teacher(classical=True),
        "without a boundary": Teacher(model=model()),
        "with one": Teacher(model=folder),
    }
    held_out = HeldOut(tiles=manifest.uri, split="train", reference=references[kind])
    score = score_model(folder, held_out, STORAGE)
    assert score.classes.keys() == {"background", "nucleus"}
    assert score.figures["dice"] == score.classes["nucleus"]["dice"]
    assert (score.figures["miou"] == pytest.approx(1.0)) == (kind == "with one")
    assert picture(folder, held_out, 2).startswith(b"\x89PNG")


def test_a_reference_with_a_boundary_is_merged_as_well(manifest: Manifest, model: Callable[..., str]) -> None:
    """Decisions of the one, held against those of the other: the same two-by-two table, turned."""
    one, other = model(), model(classes=BOUNDED)
    there, back = (
        score_model(first, HeldOut(tiles=manifest.uri, split="train", reference=Teacher(model=second)), STORAGE)
        for first, second in ((one, other), (other, one))
    )
    assert there.figures == pytest.approx(back.figures)


def test_a_mask_of_another_class_is_refused_with_its_tile(
    tmp_path: Path, tile_set: Callable[..., Manifest], mark_mask: Callable[..., str], model: Callable[..., str]
) -> None:
    marked = tile_set(tmp_path)
    row = int(marked.rows_of("test")[2])
    tile, shard = mark_mask(marked, row, 3), read_table(marked)["shard"][row].as_py()
    for classes in (("background", "nucleus"), BOUNDED):
        with pytest.raises(InputError) as caught:
            score_model(model(classes=classes), HeldOut(tiles=marked.uri), STORAGE)
        assert str(caught.value).startswith(
            f"the mask of tile {tile} in shard {marked.uri}/{shard} holds the value 3 and 0 to 1 was expected "
            "(background, nucleus); "
        )
    four = model(classes=("background", "a", "b", "c"))
    assert score_model(four, HeldOut(tiles=marked.uri), STORAGE).tiles == 4


def without_split(manifest: Manifest, uri: Path, split: str) -> Manifest:
    rows = read_table(manifest).filter(pa.array([name != split for name in read_table(manifest)["split"].to_pylist()]))
    header = manifest.header
    return write_manifest(str(uri), rows, tile_px=header.tile_px, mpp=header.mpp, ingest="", storage=STORAGE)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("reference", [None, Teacher(classical=True)], ids=["masks", "teacher"])
def test_an_empty_held_out_split_is_refused(
    manifest: Manifest, tmp_path: Path, model: Callable[..., str], split: Any, reference: Teacher | None
) -> None:
    emptied = without_split(manifest, tmp_path, split)
    said = rf"^split '{split}' of {emptied.uri} is empty \(it has "
    with pytest.raises(InputError, match=said):
        score_model(model(), HeldOut(tiles=emptied.uri, split=split, reference=reference), STORAGE)
    classifier = model(kind="classification", decoder_channels=(), classes=("stroma", "tumour"))
    with pytest.raises(InputError, match=said):
        score_model(classifier, HeldOut(tiles=emptied.uri, split=split), STORAGE)


def test_a_label_that_the_classifier_does_not_know_is_refused_with_its_tile(
    tmp_path: Path, tile_set: Callable[..., Manifest], model: Callable[..., str]
) -> None:
    labeled = tile_set(tmp_path, labels=True)
    classifier = model(kind="classification", decoder_channels=(), classes=("fat", "stroma"))
    said = rf"^tile case-5/20 of {labeled.uri} has the label 'tumour' .* expected one of fat, stroma: "
    with pytest.raises(InputError, match=said):
        score_model(classifier, HeldOut(tiles=labeled.uri), STORAGE)


def test_a_reference_of_another_resolution_is_refused_by_name(manifest: Manifest, model: Callable[..., str]) -> None:
    teacher = model(tile_mpp=0.25)
    with pytest.raises(InputError, match=rf"^teacher {teacher} was trained on tiles of 0\.25 um/px .* has 0\.5; "):
        score_model(model(), HeldOut(tiles=manifest.uri, reference=Teacher(model=teacher)), STORAGE)


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
    image = Image.open(io.BytesIO(picture(model(size_px=size_px), held_out, rows)))
    shown = min(rows, 4)
    assert image.size == (810, round(90 * (3.1 * shown + 0.3)))
