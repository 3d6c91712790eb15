"""Lineage is inherited, and seen held-out tiles are found under any name."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from histill.artifacts import model_folder
from histill.artifacts.lineage import inherit, list_teachers, state_licenses
from histill.artifacts.model_folder import ModelCard, TaughtBy, TaughtOn, build
from histill.artifacts.overlap import SeenTiles, find_seen
from histill.config.common import Storage
from histill.config.distill_student import DistillConfig
from histill.config.finetune_student import FinetuneConfig
from histill.config.load import validate
from histill.errors import InputError
from histill.evaluate.constant_baseline import score_constant
from histill.evaluate.predictions import Predictions
from histill.licenses import License
from histill.outputs import OutputSpec
from histill.tiles.manifest import Manifest, case_digests
from histill.tiles.manifest_file import write_manifest
from histill.tiles.schema import MANIFEST
from histill.tiles.slide_records import SlideRecord
from histill.tiles.tile_rows import hold_rows
from histill.tiles.whole_table import read_table
from histill.train.prepare import prepare_run

pytestmark = pytest.mark.unit

STORAGE = Storage()
NEW = (
    "weights_sha256",
    "val_cases",
    "taught_on",
    "unknown_teachers",
    "width",
    "teacher",
    "taught_by",
    "shapes",
    "icc",
    "prefixes",
)  # fields that older cards lack
CARD = ModelCard(
    kind="classification", encoder="resnet_gn", decoder_channels=(), classes=("stroma", "tumour"), mean=(0.7, 0.5, 0.7),
    std=(0.2, 0.2, 0.2), tile_px=64, tile_mpp=0.5, size_px=64, tiles_digest="cd" * 32, train_cases=("0123456789ab",),
    histill="0.1.0",
)  # fmt: skip


def digest(case: str) -> str:
    return hashlib.sha256(case.encode()).hexdigest()[:12]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    """24 tiles of the cases 0 to 3 (train), 4 (val) and 5 (test)."""
    return tile_set(tmp_path_factory.mktemp("sets") / "tiles", labels=True)


def moved(tiles: Manifest, uri: Path, rows: list[int], **columns: str) -> Manifest:
    """A tile set of some rows of another, with some columns replaced; its shards are not written."""
    table = read_table(tiles).take(rows)
    for name, value in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array([value] * len(rows)))
    return write_manifest(str(uri), table, tile_px=64, mpp=0.5, ingest="moved", storage=STORAGE)


def sliced(uri: Path, splits: dict[str, str], size: int = 64) -> Manifest:
    """A tile set of one tile for each region of a slide, `splits` by case; nothing of its shards is written."""
    record = SlideRecord(
        name="tma", cases=tuple(splits), source="/tma.svs", identity="the slide", fingerprint="1", mpp=0.5, width=999,
        height=999, origin=(0, 0), tile_side=float(size), tiles=len(splits), tissue=1.0,
    )  # fmt: skip
    rows = [
        {"tile_id": f"tma-{number}", "slide": "tma", "case": case, "x": number, "y": 0, "mpp": 0.5, "size_px": size,
         "label": None, "has_mask": False, "split": split, "shard": "0", "row_group": 0, "row": number,
         "content": hashlib.sha256(f"{uri}{number}".encode()).hexdigest()}
        for number, (case, split) in enumerate(splits.items())
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, MANIFEST)
    return write_manifest(str(uri), table, tile_px=size, mpp=0.5, ingest="sliced", storage=STORAGE, slides=(record,))


def taught(tiles: Manifest, **changes: Any) -> ModelCard:
    values = {
        "tiles_digest": tiles.header.digest, "train_cases": case_digests(tiles, "train"),
        "val_cases": case_digests(tiles, "val"), "taught_on": (TaughtOn(digest=tiles.header.digest, uri=tiles.uri),),
    }  # fmt: skip
    return CARD.model_copy(update=values | changes)


def test_cases_and_tile_sets_go_from_encoder_and_teacher_to_student(tiles: Manifest, tmp_path: Path) -> None:
    """The encoder's teacher is included too, because the encoder's card has inherited its lineage."""
    first = inherit(CARD.model_copy(update={"train_cases": ("aa",), "unknown_teachers": ("ONNX teacher x",)}))
    encoder = inherit(CARD.model_copy(update={"train_cases": ("bb",), "val_cases": ("cc",)}), first)
    torch.manual_seed(0)
    model_folder.save(str(tmp_path), build(encoder), encoder)
    data = {"tiles": tiles.uri, "batch_size": 4}
    tuned = prepare_run(
        validate(
            FinetuneConfig,
            {"name": "f", "runs": str(tmp_path / "r"), "data": data, "target": "classification",
             "encoder": str(tmp_path), "student": {"encoder": "resnet_gn"}},
            "",
        )
    ).card  # fmt: skip
    distilled = prepare_run(
        validate(
            DistillConfig,
            {"name": "d", "runs": str(tmp_path / "r"), "data": data, "teacher": {"model": str(tmp_path)},
             "student": {"encoder": "resnet_gn"}, "loss": {"features": None}},
            "",
        )
    ).card  # fmt: skip
    own = {digest(f"case-{number}") for number in range(4)}
    for card in (tuned, distilled):
        assert set(card.train_cases) == own | {"aa", "bb"}
        assert set(card.val_cases) == {digest("case-4"), "cc"}
        assert {each.digest for each in card.taught_on} == {tiles.header.digest, "cd" * 32}
        assert card.taught_on[0].uri == tiles.uri
        assert card.unknown_teachers == ("ONNX teacher x",)


def test_a_card_of_an_older_version_is_read_and_keeps_its_digest(tmp_path: Path) -> None:
    """Registered versions are identified by it, so it must be computed from the older fields only."""
    old = {key: value for key, value in CARD.model_dump(mode="json").items() if key not in NEW}
    (tmp_path / "model.json").write_text(json.dumps(old))
    card = model_folder.read_card(str(tmp_path), STORAGE)
    assert card == CARD
    text = json.dumps(old, separators=(",", ":"), ensure_ascii=False)
    assert model_folder.digest_of(card, b"weights") == hashlib.sha256(text.encode() + b"weights").hexdigest()
    assert model_folder.digest_of(inherit(card), b"weights") != model_folder.digest_of(card, b"weights")


MIT = License.model_validate("MIT")


def test_licenses_go_from_card_to_card() -> None:
    """A card without them is of an older version, whose teachers have none on record."""
    older = CARD.model_copy(update={"unknown_teachers": ("ONNX teacher x",)})
    assert list_teachers(CARD) == ()
    assert list_teachers(older) == (TaughtBy(name="ONNX teacher x"),)
    oldest = CARD.model_copy(update={"teacher_digest": "ef" * 32})  # it does not tell which teachers are licensed
    assert list_teachers(oldest) == (TaughtBy(name="teacher efefefefefef"),)
    free = TaughtBy(name="onnx teacher y", license=MIT)
    first = inherit(CARD.model_copy(update={"taught_by": (free,)}), older)
    second = inherit(CARD.model_copy(update={"taught_by": (free, TaughtBy(name="encoder weights z"))}), first)
    assert second.taught_by == (free, TaughtBy(name="encoder weights z"), TaughtBy(name="ONNX teacher x"))
    assert inherit(CARD).taught_by == ()


def test_stated_licenses_replace_those_on_record() -> None:
    card = CARD.model_copy(update={"taught_by": (TaughtBy(name="a"), TaughtBy(name="b", license=MIT))})
    bought = License(name="contract 7", commercial=True, source="https://example.org/7")
    assert state_licenses(card, {}) == card.taught_by
    assert state_licenses(card, {"a": MIT, "b": bought}) == (
        TaughtBy(name="a", license=MIT),
        TaughtBy(name="b", license=bought),
    )
    with pytest.raises(InputError, match=r"stated names 'c', which has not taught the model; 'a', 'b' taught it: name"):
        state_licenses(card, {"c": MIT})
    with pytest.raises(InputError, match=r"stated names 'c', which has not taught the model; leave it out"):
        state_licenses(CARD, {"c": MIT})


def test_the_splits_that_taught_it_and_that_chose_it_are_seen(tiles: Manifest) -> None:
    card = taught(tiles)
    assert find_seen(card, tiles, "train", STORAGE) == SeenTiles(4, 16)
    assert find_seen(card, tiles, "val", STORAGE) == SeenTiles(1, 4)
    assert find_seen(card, tiles, "test", STORAGE) == SeenTiles()
    older = taught(tiles, val_cases=(), taught_on=())
    assert find_seen(older, tiles, "val", STORAGE).cases == 1
    assert find_seen(older, tiles, "test", STORAGE) == SeenTiles()


@pytest.mark.parametrize("older", [False, True])
def test_training_tiles_are_known_by_their_bytes_under_any_name(tiles: Manifest, older: bool) -> None:
    """Two tiles of a training case and four of the test case, all as one new case, in a tile set next to the other."""
    beside = Path(tiles.uri).parent / f"renamed-{older}"
    changes = {"val_cases": (), "taught_on": ()} if older else {}
    card = taught(tiles, **changes)
    held_out = moved(tiles, beside, [1, 2, 20, 21, 22, 23], case="patient X", split="test", label="tumour")
    assert find_seen(card, held_out, "test", STORAGE) == SeenTiles(1, 2)
    fresh = moved(tiles, Path(f"{beside}-fresh"), [20, 21, 22, 23], case="patient X", split="test")
    assert find_seen(card, fresh, "test", STORAGE) == SeenTiles()


def test_a_slide_is_known_under_other_cases_unless_its_regions_are_other_patients(tmp_path: Path) -> None:
    """Only the ingest of one tile set knows of that: it refuses a slide in two splits unless it is told."""
    cores = sliced(tmp_path / "cores", {"a": "train", "b": "val", "c": "test"})
    card = taught(cores)
    assert find_seen(card, cores, "test", STORAGE) == SeenTiles(divided=("tma",))
    assert find_seen(card, cores, "val", STORAGE) == SeenTiles(1, 1, ("tma",))
    elsewhere = sliced(tmp_path / "elsewhere", {"patient X": "test"}, 128)
    assert find_seen(card, elsewhere, "test", STORAGE) == SeenTiles(1)


def test_an_image_is_known_whatever_its_mask(tiles: Manifest) -> None:
    masks = moved(tiles, Path(tiles.uri).parent / "other masks", [1, 2], case="patient Y", split="test")
    contents = [content[:32] + "0" * 32 for content in read_table(masks)["content"].to_pylist()]
    at = read_table(masks).schema.get_field_index("content")
    table = read_table(masks).set_column(at, read_table(masks).schema.field(at), pa.array(contents))
    assert find_seen(taught(tiles), Manifest(masks.uri, masks.header, hold_rows(table)), "test", STORAGE) == SeenTiles(
        1, 2
    )


def test_a_training_set_that_is_gone_is_said(tiles: Manifest, tmp_path: Path) -> None:
    held_out = moved(tiles, tmp_path / "far" / "tiles", [20, 21], case="patient Z", split="test")
    for number, text in enumerate(("[]", "{}", "no JSON")):
        (tmp_path / "far" / str(number)).mkdir()
        (tmp_path / "far" / str(number) / "manifest.json").write_text(text)
    gone = TaughtOn(digest="ef" * 32, uri=str(tmp_path / "gone"))
    card = taught(tiles, taught_on=(gone,), unknown_teachers=("ONNX teacher t.onnx",))
    found = find_seen(card, held_out, "test", STORAGE)
    assert found.cases == 0
    place = f"tile set efefefefefef, which is no longer at {gone.uri} nor beside the held-out tiles"
    assert found.unknown == ("ONNX teacher t.onnx", place)


def answers(form: str, said: Any, truth: Any) -> Predictions:
    count, multi_label = len(said), form == "multi_label"
    spec = OutputSpec("classification" if multi_label else form, tuple("abc"), multi_label)  # type: ignore[arg-type]
    return Predictions(spec, np.arange(count), np.array(said), np.array(truth), np.zeros((count, 2), np.float32), 0)


def test_what_one_answer_for_all_tiles_reaches() -> None:
    """By hand: 30 of 100 pixels are nuclei, so marking all gives a Dice of 2 * 30 / (100 + 30)."""
    logits = np.zeros((4, 3), np.float32)
    assert score_constant(answers("classification", logits, [0, 1, 1, 1])) == 0.5  # the third class never occurs
    assert score_constant(answers("multi_label", logits, np.zeros((4, 3)))) == 0.5
    pixels = [[[60, 10], [5, 25]]]
    assert score_constant(answers("segmentation", pixels, [0])) == pytest.approx(60 / 130)
    assert score_constant(answers("segmentation", [[[100, 0], [0, 0]]], [0])) == 0.0
    three = [[[50, 0, 0], [0, 30, 0], [0, 0, 20]]]  # the mean of two foregrounds, one of which is marked everywhere
    assert score_constant(answers("segmentation", three, [0])) == pytest.approx(60 / 130 / 2)
