"""The whole score of a model: its page, its robustness, its speed, and what is written where."""

import html.parser
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch

from histill.artifacts.model_folder import ModelCard, build, save
from histill.config.common import Storage
from histill.config.score_model import HeldOut, ScoreConfig
from histill.engines.engine import Choice, Engine
from histill.engines.loaded_model import LoadedModel
from histill.errors import InputError
from histill.evaluate import evaluator
from histill.evaluate.evaluator import Evaluator, split_by_row_group
from histill.evaluate.pictures import shorten
from histill.evaluate.predictions import Predictions
from histill.evaluate.readable import format_figure, list_figures, render_table
from histill.evaluate.robustness import CHANGES, EXPLAINED, UNCHANGED, measure_robustness
from histill.evaluate.score import score_model
from histill.evaluate.shown_tiles import find_worst_tiles, read_shown
from histill.models.cost import measure_speed
from histill.registry.scoring import run_scoring
from histill.testing.tile_sets import write_tile_set
from histill.tiles.manifest import Manifest, case_digests
from histill.tiles.shards import Tile
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

STORAGE = Storage()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=48, labels=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    def make(**changes: Any) -> str:
        values: dict[str, Any] = {
            "kind": "classification", "encoder": "csat_tiny", "decoder_channels": (), "classes": ("stroma", "tumour"),
            "mean": (0.5,) * 3, "std": (0.2,) * 3, "tile_px": 64, "tile_mpp": 0.5, "size_px": 32,
            "tiles_digest": "tiles", "train_cases": (), "histill": "0",
        }  # fmt: skip
        folder, card = tmp_path_factory.mktemp("model"), ModelCard(**values | changes)
        torch.manual_seed(0)
        save(str(folder), build(card), card)
        return str(folder)

    return make


SEGMENTER = {"kind": "segmentation", "decoder_channels": (16, 16, 8, 8, 8), "classes": ("background", "nucleus")}


class Page(html.parser.HTMLParser):
    """What a page says, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.said, self.loaded = "", []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.said += data


def test_groups_of_a_column_are_in_table_and_page(model: Callable[..., str], tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), np.uint8)
    tiles = [
        Tile(
            f"t{number}", "s", f"case {number // 2}", 0, 0, 0.5, ("stroma", "tumour")[number % 2],
            simplejpeg.encode_jpeg(pixels), None, kept=("<north>" if number % 3 else None,),
        )
        for number, pixels in enumerate(noise)
    ]  # fmt: skip
    kept = write_tile_set(
        str(tmp_path / "kept"), tiles, ["test"] * len(tiles), tile_px=64, per_shard=8, per_group=4, keep=["center"]
    )
    report = tmp_path / "one.html"
    config = ScoreConfig(
        model=model(), held_out=HeldOut(tiles=kept.uri, by=("center",)), report=str(report), bootstrap_samples=50,
        robustness_tiles=0, speed=False,
    )  # fmt: skip
    score = run_scoring(config)
    assert set(score.by_column["center"]) == {"<north>", "(no value)"}
    assert sum(each.tiles for each in score.by_column["center"].values()) == len(tiles)
    assert "balanced accuracy by center, a gap of" in render_table(score)
    page = Page(report.read_text())
    assert "By center" in page.said
    assert "<north>" in page.said
    with pytest.raises(InputError, match=r"keeps no column 'scanner' of its index \(it keeps center\)"):
        run_scoring(config.model_copy(update={"held_out": HeldOut(tiles=kept.uri, by=("scanner",))}))


@pytest.mark.parametrize("changes", [{}, SEGMENTER], ids=["classifier", "segmenter"])
def test_the_page_holds_everything(
    manifest: Manifest, model: Callable[..., str], tmp_path: Path, changes: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    report = tmp_path / "reports" / "one.html"
    taught = {"tiles_digest": manifest.header.digest, "train_cases": case_digests(manifest, "train")}
    config = ScoreConfig(
        model=model(**changes, **taught), held_out=HeldOut(tiles=manifest.uri, split="train"), report=str(report),
        picture=str(tmp_path / "tiles.png"), bootstrap_samples=20, robustness_tiles=6,
    )  # fmt: skip
    score = run_scoring(config)
    page = Page(report.read_text())
    assert page.loaded
    assert all(source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for source in page.loaded)
    expected = [*score.classes, *EXPLAINED.values(), score.model_digest, score.tiles_digest, "case-0"]
    expected += ["The worst first.", f"histill score model={config.model} held_out.tiles=", "32 tiles of 4 cases"]
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", page.said)
    for text in (*expected, "the background counts as well" if changes else "AUROC"):
        assert text in page.said, text
    assert (tmp_path / "tiles.png").read_bytes().startswith(b"\x89PNG")
    assert score.intervals.keys() == score.figures.keys()
    low, high = score.intervals[score.main]
    assert low <= score.figures[score.main] <= high
    assert (score.cases, score.slides, score.tiles) == (4, 4, 32)
    doubt = "the model learned from, or was chosen by, 4 of 4 cases (32 tiles byte for byte)"
    assert doubt in page.said
    assert f"warning: {doubt}" in capsys.readouterr().err
    assert sum(map(sum, score.confusion)) == 32 * (64 * 64 if changes else 1)
    for parts in (score.by_slide, score.by_stain):
        assert sum(part.tiles for part in parts.values()) == 32


def make_image_set(uri: str, draw_tile: Callable[..., Any]) -> Manifest:
    """16 images of two cases to learn from, each of them a slide of its own, as ingest writes images."""
    tiles = [
        Tile(
            tile_id=f"{number}.jpg", slide=f"{number}.jpg", case=f"case-{number // 8}", x=0, y=0, mpp=0.5,
            label=("tumour", "stroma")[number % 2], mask=None,
            image=simplejpeg.encode_jpeg(draw_tile(number, 64)[0], quality=95),
        )
        for number in range(16)
    ]  # fmt: skip
    return write_tile_set(uri, tiles, ["train"] * 16, tile_px=64, per_shard=8, per_group=4)


def test_of_images_cases_are_listed_and_no_slides(
    tmp_path: Path, model: Callable[..., str], draw_tile: Callable[..., Any]
) -> None:
    images = make_image_set(f"{tmp_path}/tiles", draw_tile)
    report = tmp_path / "one.html"
    config = ScoreConfig(
        model=model(), held_out=HeldOut(tiles=images.uri, split="train"), report=str(report), bootstrap_samples=0,
        robustness_tiles=0, speed=False,
    )  # fmt: skip
    score = run_scoring(config)
    page = Page(report.read_text())
    assert (score.slides, list(score.by_case), sum(part.tiles for part in score.by_case.values())) == (
        16, sorted(score.by_case, key=lambda case: score.by_case[case].figure), 16,
    )  # fmt: skip
    assert "16 images of 2 cases, held against labels" in page.said
    assert "slide" not in page.said.lower()


def test_the_worst_tiles_are_the_first(manifest: Manifest, model: Callable[..., str]) -> None:
    examiner = Evaluator.load(model(), HeldOut(tiles=manifest.uri, split="train"), STORAGE)
    answers = Predictions.joined([examiner.answers(batch) for batch in examiner.batches(examiner.rows)])
    worst = find_worst_tiles(answers, 6)
    quality = dict(zip(answers.rows.tolist(), answers.per_tile(), strict=True))
    assert [quality[row] for row in worst.tolist()] == sorted(quality.values())[:6]
    names = [read_table(manifest)["tile_id"][row].as_py() for row in worst.tolist()]
    assert worst.tolist() != sorted(worst.tolist())
    assert [tile.name for tile in read_shown(examiner, worst)] == names


def test_figures_and_their_names_are_for_readers() -> None:
    assert [format_figure(value) for value in (1e-5, -2e-4, 0.0, 0.0005, 0.25, 12.34)] == [
        "1e-05", "-2e-04", "0.000", "0.001", "0.250", "12.3",
    ]  # fmt: skip


def test_the_table_has_each_figure_with_its_interval_or_the_sd_of_its_draws(
    manifest: Manifest, model: Callable[..., str]
) -> None:
    held_out = HeldOut(tiles=manifest.uri, split="train")
    score = replace(
        score_model(model(), held_out, STORAGE, bootstrap_samples=20),
        figures={"auroc": 0.75, "few_shot_1_balanced_accuracy": 0.5, "few_shot_1_balanced_accuracy_sd": 0.0625},
        intervals={"auroc": (0.5, 1.0), "few_shot_1_balanced_accuracy": (0.25, 0.625)},
    )
    assert [row[:3] for row in list_figures(score)] == [
        ("AUROC", "0.750", "0.500 to 1.000"),
        ("balanced accuracy from 1 case for each class", "0.500 (sd 0.062 over draws)", "0.250 to 0.625"),
    ]
    said, header, _, first, _ = render_table(score).splitlines()
    assert said == "split train, 32 tiles of 4 slides and 4 cases, held against labels:"
    assert header.split("  ")[0] == "figure"
    assert header.endswith("95 % over cases")
    assert first.split() == ["AUROC", "0.750", "0.500", "to", "1.000"]
    single = replace(score, intervals={}, tiles=1, slides=1, cases=1)
    assert render_table(single).splitlines()[0].startswith("split train, 1 tile of 1 slide and 1 case,")
    assert "over cases" not in render_table(single)


@pytest.mark.parametrize(
    ("text", "shown"), [("a" * 12, "a" * 12), ("abcdefghijklm", "abcd...ijklm"), ("0123456789" * 2, "0123...56789")]
)
def test_a_title_says_what_it_leaves_out(text: str, shown: str) -> None:
    assert shorten(text, 12) == shown


def test_a_name_cannot_become_markup(manifest: Manifest, model: Callable[..., str], tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    report = tmp_path / "one.html"
    run_scoring(
        ScoreConfig(
            model=model(classes=("stroma", "tumour", hostile)), held_out=HeldOut(tiles=manifest.uri),
            report=str(report), bootstrap_samples=0, robustness_tiles=0, speed=False,
        )
    )  # fmt: skip
    assert hostile not in report.read_text()
    assert hostile in Page(report.read_text()).said


def test_the_unchanged_tiles_are_those_that_are_scored(manifest: Manifest, model: Callable[..., str]) -> None:
    examiner = Evaluator.load(model(**SEGMENTER | {"size_px": 64}), HeldOut(tiles=manifest.uri), STORAGE)
    found = measure_robustness(examiner, 99)
    score = score_model(model(**SEGMENTER | {"size_px": 64}), HeldOut(tiles=manifest.uri), STORAGE)
    assert found.keys() == CHANGES.keys() == EXPLAINED.keys()
    assert found[UNCHANGED] == pytest.approx(score.figures["dice"])
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("name", [name for name in CHANGES if name != UNCHANGED])
def test_a_change_changes_the_tile_and_nothing_else(name: str, draw_tile: Callable[..., Any]) -> None:
    tile, _ = draw_tile(0, 64)
    before = tile.copy()
    changed = CHANGES[name](tile, 7)
    assert (changed.shape, changed.dtype) == (tile.shape, tile.dtype)
    assert (tile == before).all()
    assert 1 < np.abs(changed.astype(int) - tile).mean() < 60
    assert (changed == CHANGES[name](tile, 7)).all()


def test_speed_is_measured_at_one_tile_and_at_many() -> None:
    found = measure_speed(torch.nn.Conv2d(3, 8, 3).eval(), 32, torch.device("cpu"))
    assert found.keys() == {"device", "ms_at_batch_1", "ms_at_batch_32", "tiles_per_s", "peak_memory_mb"}
    assert float(found["tiles_per_s"]) == pytest.approx(32_000 / float(found["ms_at_batch_32"]), rel=0.05)


def test_speed_is_of_what_ran_the_model(
    manifest: Manifest, model: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def start(asked: str, loaded: LoadedModel, *_: object) -> Engine:
        def answer(tiles: torch.Tensor) -> torch.Tensor:
            seen.append(len(tiles))
            found: torch.Tensor = loaded.network(tiles.float())
            return found

        return Engine(Choice("openvino", "openvino"), answer, 8)

    monkeypatch.setattr(evaluator, "start_engine", start)
    how: dict[str, Any] = {"held_out": HeldOut(tiles=manifest.uri), "bootstrap_samples": 0, "robustness_tiles": 0}
    score = run_scoring(ScoreConfig(model=model(), engine="openvino", **how))
    assert score.speed["engine"] == "openvino"
    assert seen[-1] == 8  # of the 32 that are measured last
    assert run_scoring(ScoreConfig(model=model(), engine="torch", **how)).speed["engine"] == "torch"


@pytest.mark.parametrize("parts", [1, 2, 5, 100])
def test_parts_are_whole_row_groups_and_together_all(manifest: Manifest, parts: int) -> None:
    rows = manifest.rows_of("train")
    cut = split_by_row_group(manifest, rows, parts)
    assert np.concatenate(cut).tolist() == rows.tolist()
    assert len(cut) == min(parts, 8)
    assert all(part[0] % 4 == 0 for part in cut)  # the rows of a group


def test_a_classifier_is_held_against_no_teacher(manifest: Manifest, model: Callable[..., str]) -> None:
    held_out = HeldOut.model_validate({"tiles": manifest.uri, "reference": {"classical": True}})
    with pytest.raises(InputError, match=r"^held_out\.reference is for models that mark pixels"):
        Evaluator.load(model(), held_out, STORAGE)
