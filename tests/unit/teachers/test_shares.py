"""The shares of a teacher's classes in each slide: values, warnings about implausible ones, and the table."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import histill.teachers.cache
from histill.api.tiles import cache_responses
from histill.artifacts.model_folder import ModelCard, build, save
from histill.cli.outcomes import show
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.config.load import validate
from histill.errors import InputError
from histill.evaluate.teacher_picture import name_tile, read_responses, spread_over_slides
from histill.outputs import OutputSpec
from histill.stream.responses import encode_logits
from histill.teachers.cache import read_header
from histill.teachers.classical import ClassicalTeacher
from histill.teachers.shares import Shares, tally_responses
from histill.tiles.manifest import Manifest
from histill.tiles.tally import SlideTally
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _serial(in_process: Callable[..., None]) -> None:
    in_process(histill.teachers.cache)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    """24 tiles of six cases; every second tile has no nuclei."""
    return tile_set(tmp_path_factory.mktemp("tiles"), labels=True)


def cache(tiles: Manifest, output: Path, teacher: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """The JSON that the job prints."""
    data = {"tiles": tiles.uri, "teacher": teacher, "output": str(output)} | keys
    config = validate(CacheConfig, data, "test")
    return dict(show("cache_responses", cache_responses(config), config).values)


def classifier(folder: Path, *, multi_label: bool = False) -> dict[str, Any]:
    card = ModelCard(
        kind="classification", multi_label=multi_label, encoder="csat_tiny", decoder_channels=(),
        classes=("stroma", "tumour"), mean=(0.5,) * 3, std=(0.2,) * 3, tile_px=64, tile_mpp=0.5, size_px=64,
        tiles_digest="tiles", train_cases=(), histill="0",
    )  # fmt: skip
    folder.mkdir()
    torch.manual_seed(0)
    save(str(folder), build(card), card)
    return {"model": str(folder)}


def decoded_tiles(tiles: Manifest) -> dict[str, np.ndarray]:
    import pyarrow.parquet as pq

    rows = [row for path in sorted(Path(tiles.uri, "shards").iterdir()) for row in pq.read_table(path).to_pylist()]
    return {row["tile_id"]: np.array(Image.open(io.BytesIO(row["image"]))) for row in rows}


def test_shares_are_those_of_the_teachers_pixels(
    tiles: Manifest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = cache(tiles, tmp_path, {"classical": True})
    teacher, images = ClassicalTeacher(0.5), decoded_tiles(tiles)
    expected: dict[str, list[float]] = {}
    for row in read_table(tiles).to_pylist():
        logits = teacher.respond(torch.from_numpy(images[row["tile_id"]]).permute(2, 0, 1)[None])[0]
        expected.setdefault(row["case"], []).append(float((logits[1] > 0).float().mean()))
    for case, shares in expected.items():
        told = found["shares"][case]
        assert (told["tiles"], told["undecodable"]) == (4, 0)
        # a stored logit is off by 0.04 at most, which moves an outline by few pixels
        assert told["shares"]["nucleus"] == pytest.approx(np.mean(shares), abs=0.004)
        assert told["shares"]["background"] + told["shares"]["nucleus"] == pytest.approx(1)
    assert found["implausible"] == []
    said = capfd.readouterr().err
    assert all(case in said for case in expected)
    assert "warning" not in said
    assert Image.open(found["contours"]).format == "PNG"
    again = cache(tiles, tmp_path, {"classical": True})
    assert again == found | {"reused": True}
    assert json.loads(Path(found["responses"], "shares.json").read_text())["of"] == "case"
    for lost in ("shares.json", "contours.png"):
        Path(found["responses"], lost).unlink()
        assert cache(tiles, tmp_path, {"classical": True})["shares"] == found["shares"]
        assert Path(found["responses"], lost).exists()


@pytest.mark.parametrize("multi_label", [False, True])
def test_shares_of_a_classifier_are_tiles(tiles: Manifest, tmp_path: Path, multi_label: bool) -> None:
    teacher = classifier(tmp_path / "model", multi_label=multi_label)
    found = cache(tiles, tmp_path, teacher)
    from histill.artifacts.model_folder import load

    network, _, _ = load(teacher["model"], Storage())
    images, said = decoded_tiles(tiles), {}
    for row in read_table(tiles).to_pylist():
        with torch.inference_mode():
            logits = network(torch.from_numpy(images[row["tile_id"]].copy()).permute(2, 0, 1)[None].float())[0]
        levels = ((logits if multi_label else logits - logits[0]) * 12.7).round()  # as logits are stored
        chosen = levels > 0 if multi_label else levels == levels.max()
        said.setdefault(row["case"], []).append(chosen.numpy().astype(float))
    for case, each in said.items():
        assert list(found["shares"][case]["shares"].values()) == pytest.approx(np.mean(each, axis=0))
    assert Image.open(found["contours"]).format == "PNG"


@dataclass(frozen=True)
class Marker:
    """A teacher reduced to its outputs."""

    outputs: OutputSpec


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_each_pixel_counts_for_its_likeliest_class(tiles: Manifest, classes: int) -> None:
    random = np.random.default_rng(classes)
    logits = random.normal(0, 3, (3, classes - 1, 16, 16)).astype(np.float32)
    teacher: Any = Marker(OutputSpec("segmentation", tuple(f"class {number}" for number in range(classes))))
    answers = [encode_logits(each) for each in logits]
    (tally,) = tally_responses(answers, teacher, tiles, np.array([0, 1, 3]), 16)
    stored = np.concatenate([np.zeros((3, 1, 16, 16)), (logits * 12.7).round()], axis=1)  # the first of equal ones
    expected = np.bincount(stored.argmax(1).ravel(), minlength=classes) / stored[:, 0].size
    assert (tally.slide, tally.tiles, tally.means) == ("case-0", 3, pytest.approx(tuple(expected)))
    assert tally.area_mm2 == pytest.approx(3 * 0.032**2)


VIEWS = [{}, {"views": 2, "seed": 3, "augment": {"flips": True}}, {"views": 2, "augment": {"crop_px": 32}}]


@pytest.mark.parametrize("views", VIEWS, ids=["whole tiles", "turned", "windows"])
def test_outlines_are_drawn_over_what_was_answered(tiles: Manifest, tmp_path: Path, views: dict[str, Any]) -> None:
    uri = cache(tiles, tmp_path, {"classical": True}, **views)["responses"]
    shown = list(read_responses(uri, read_header(uri, Storage()), tiles, Storage()))
    assert len(shown) == 12
    for _, image, logits in shown:
        (expected,) = ClassicalTeacher(0.5).respond(torch.from_numpy(image).permute(2, 0, 1)[None])
        assert float((expected.argmax(0) == logits.argmax(0)).float().mean()) > 0.99


def test_an_undecodable_tile_has_no_share(
    tmp_path: Path, tile_set: Callable[..., Manifest], spoil_tile: Callable[..., str]
) -> None:
    spoilt = tile_set(tmp_path / "tiles")
    spoil_tile(spoilt, 1)
    found = cache(spoilt, tmp_path / "out", {"classical": True})
    assert (found["shares"]["case-0"]["tiles"], found["shares"]["case-0"]["undecodable"]) == (4, 1)
    assert found["shares"]["case-0"]["shares"]["nucleus"] > 0.05


def test_a_teacher_that_is_replaced_meanwhile_is_refused(
    tiles: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = histill.teachers.cache.ResponseWorker  # the actor loads it again
    monkeypatch.setattr(histill.teachers.cache, "ResponseWorker", lambda job, of, _: made(job, of, "of another"))
    with pytest.raises(InputError, match=r"teacher .* was replaced while this job was reading it"):
        cache(tiles, tmp_path, classifier(tmp_path / "model"))


def shares(by_slide: dict[str, float], *, classes: tuple[str, ...] = ("background", "nucleus"), **keys: Any) -> Shares:
    """Shares of slides with 40 tiles each, from the share of the second class."""
    tallies = tuple(
        SlideTally(name, 40, 0, 1.0, {}, [40 * (1 - share), 40 * share]) for name, share in by_slide.items()
    )
    return Shares(**{"of": "slide", "classes": classes, "dense": True, "mpp": 0.25, "tallies": tallies} | keys)


def test_slides_with_too_few_or_too_many_nuclei_are_named_in_one_line() -> None:
    found = shares({"a": 0.12, "b": 0.0008, "c": 0.7, "d": 0.005, "e": 0.6})
    assert found.implausible() == pytest.approx({"b": 0.0008, "c": 0.7})
    (line,) = found.warnings()
    assert "0.08% of slide b, 70.00% of slide c" in line
    assert "0.25 um/px" in line
    assert "\n" not in line
    assert found.table().splitlines()[2].split()[0] == "b"  # implausible slides come first
    (many,) = shares({str(number): 0.0 for number in range(50)}).warnings()
    assert "and 47 more" in many


def test_other_teachers_are_warned_of_when_they_say_one_thing_alone() -> None:
    assert list(shares({"a": 0.9, "b": 0.0}, classes=("background", "epithelium")).warnings()) == []
    (line,) = shares({"a": 1.0, "b": 1.0}, classes=("stroma", "tumour"), dense=False).warnings()
    assert "'tumour' for all 80 tiles" in line
    assert list(shares({"a": 0.98, "b": 1.0}, classes=("stroma", "tumour"), dense=False).warnings()) == []


def test_a_long_table_is_cut() -> None:
    lines = shares({f"slide-{number}": 0.1 for number in range(300)}).table().splitlines()
    assert len(lines) == 23
    assert lines[-1] == "... and 280 more"


def test_the_picture_shows_many_slides(tiles: Manifest) -> None:
    slides = read_table(tiles)["slide"].to_pylist()
    twelve = spread_over_slides(tiles, 12)
    assert len(set(twelve.tolist())) == 12
    assert [slides[row] for row in twelve] == [f"case-{number}" for number in range(6) for _ in range(2)]
    three = spread_over_slides(tiles, 3)
    assert len({slides[row] for row in three}) == 3
    assert spread_over_slides(tiles, 100).tolist() == list(range(24))


@pytest.mark.parametrize(
    ("place", "slides", "title"),
    [
        ({"tile_id": "S1_256_0", "slide": "S1", "case": "P1"}, "slides.json", "S1\n256_0"),
        ({"tile_id": "x/a.png", "slide": "x/a.png", "case": "P1"}, None, "P1\nx/a.png"),
        ({"tile_id": "a", "slide": "a", "case": "a" * 40}, None, f"{'a' * 40}\na"),
    ],
    ids=["of a slide", "an image", "long"],
)
def test_a_panel_says_whose_tile_it_shows_and_which(place: dict[str, str], slides: str | None, title: str) -> None:
    manifest: Any = SimpleNamespace(tile=lambda row: place, header=SimpleNamespace(slides=slides))
    assert name_tile(manifest, 0) == title
