"""Scores of an encoder: the probe in a classifier's place, whoever embeds the tiles."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import histill.evaluate.representation.embed
from histill.artifacts.model_folder import ModelCard, build, load, save
from histill.config.common import Storage, Teacher, Workers
from histill.config.encoder import EncoderFacts, EncoderOptions
from histill.config.probe import Centers, Probe
from histill.config.score_model import HeldOut, ScoreConfig
from histill.errors import InputError
from histill.evaluate.examine import examine
from histill.evaluate.representation.centers import read_centers
from histill.evaluate.robustness import UNCHANGED
from histill.evaluate.score import score_model
from histill.models.encoders import embed
from histill.registry.scoring import run_scoring
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import write_manifest
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

STORAGE = Storage()
SEGMENTER = {"kind": "segmentation", "decoder_channels": (16, 16, 8, 8, 8), "classes": ("background", "nucleus")}
CLASSIFIER = {"kind": "classification", "classes": ("a", "b", "c")}
PROBE = Probe(neighbors=3, shots=(1, 2, 9), draws=3)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    """60 tiles of ten cases: eight for training, one for validation, one held out."""
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=60, cases=10, labels=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    made: dict[str, str] = {}

    def make(**changes: Any) -> str:
        values: dict[str, Any] = {
            "kind": "encoder", "encoder": "csat_tiny", "decoder_channels": (), "classes": (), "mean": (0.5,) * 3,
            "std": (0.2,) * 3, "tile_px": 64, "tile_mpp": 0.5, "size_px": 32, "tiles_digest": "tiles",
            "train_cases": (), "histill": "0",
        }  # fmt: skip
        if str(changes) not in made:
            folder, card = tmp_path_factory.mktemp("model"), ModelCard(**values | changes)
            torch.manual_seed(0)
            save(str(folder), build(card), card)
            made[str(changes)] = str(folder)
        return made[str(changes)]

    return make


def embeddings_of(folder: str, manifest: Manifest, split: str) -> tuple[np.ndarray, list[str]]:
    """Each tile's embedding and label, by the network alone."""
    network, _, _ = load(folder, STORAGE)
    examined = examine(folder, HeldOut(tiles=manifest.uri, split=split, probe=Probe(train="val", val=None)), STORAGE)
    tiles = torch.cat([batch.student[batch.valid] for batch in examined.examiner.batches(manifest.rows_of(split))])
    with torch.inference_mode():
        values = embed(network, tiles.float()).numpy()
    return values, read_table(manifest)["label"].take(pa.array(manifest.rows_of(split))).to_pylist()


def test_an_encoder_scores_what_scikit_learns_probe_scores(manifest: Manifest, model: Callable[..., str]) -> None:
    folder = model()
    train, known = embeddings_of(folder, manifest, "train")
    asked, truth = embeddings_of(folder, manifest, "test")
    held_out = HeldOut(tiles=manifest.uri, batch_size=7, probe=PROBE)
    score = score_model(folder, held_out, STORAGE)
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(C=float(score.probe["C"]), class_weight="balanced", max_iter=2000)
    ).fit(train.astype(float), known)
    assert score.figures["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, probe.predict(asked)))
    assert (score.kind, score.reference) == ("classification", "labels, by a linear probe")
    assert (score.tiles, score.cases, score.main) == (6, 1, "balanced_accuracy")
    assert score.probe | {"C": 0} == {
        "width": train.shape[1], "train_split": "train", "train_tiles": 48, "train_cases": 8, "C": 0,
        "C_chosen_by": "folds of train",
    }  # fmt: skip


def test_C_is_chosen_on_a_split_where_that_is_asked_for(manifest: Manifest, model: Callable[..., str]) -> None:
    held_out = HeldOut(tiles=manifest.uri, probe=PROBE.model_copy(update={"val": "val"}))
    assert score_model(model(), held_out, STORAGE).probe["C_chosen_by"] == "split val"


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_split_chooses_C_that_is_learned_or_scored(
    manifest: Manifest, model: Callable[..., str], split: str
) -> None:
    held_out = HeldOut(tiles=manifest.uri, probe=PROBE.model_copy(update={"val": split}))
    with pytest.raises(InputError, match=rf"^held_out\.probe\.val is '{split}', which is also learned from or scored"):
        score_model(model(), held_out, STORAGE)


def test_a_split_without_a_class_does_not_choose_C(
    manifest: Manifest, model: Callable[..., str], tmp_path: Path
) -> None:
    one_class = [
        "stroma" if split == "val" else label
        for split, label in zip(*(read_table(manifest)[name].to_pylist() for name in ("split", "label")), strict=True)
    ]
    held_out = HeldOut(tiles=relabel(manifest, tmp_path, one_class), probe=PROBE.model_copy(update={"val": "val"}))
    with pytest.raises(InputError, match=r"^split 'val' of .* has no tile of 'tumour', so the probe's C cannot"):
        score_model(model(), held_out, STORAGE)


def test_whoever_embeds_the_tiles_the_score_is_the_same(
    manifest: Manifest, model: Callable[..., str], in_process: Callable[..., None]
) -> None:
    held_out = HeldOut(tiles=manifest.uri, split="val", batch_size=5, probe=PROBE)
    alone = score_model(model(), held_out, STORAGE, bootstrap_samples=20)
    in_process(histill.evaluate.representation.embed, backwards=True)
    shared = score_model(model(), held_out, STORAGE, bootstrap_samples=20, workers=Workers(count=3))
    assert shared.figures == pytest.approx(alone.figures, abs=1e-6, nan_ok=True)
    assert shared.confusion == alone.confusion


@pytest.mark.parametrize("changes", [SEGMENTER, CLASSIFIER], ids=["segmenter", "classifier"])
def test_the_encoder_of_any_model_can_be_judged(
    manifest: Manifest, model: Callable[..., str], changes: dict[str, Any]
) -> None:
    score = score_model(model(**changes), HeldOut(tiles=manifest.uri, split="val", probe=PROBE), STORAGE)
    assert score.classes.keys() == {"stroma", "tumour"}
    assert score.figures.keys() >= {"balanced_accuracy", "knn_balanced_accuracy", "retrieval_map"}


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[str, torch.nn.Module]]:
    """A small network as the Hugging Face hub has it, and the network."""

    def make(architecture: str, args: dict[str, Any] | None = None, **pretrained: Any) -> tuple[str, torch.nn.Module]:
        torch.manual_seed(0)
        folder, network = (
            tmp_path_factory.mktemp("hub"),
            timm.create_model(architecture, num_classes=0, **args or {}).eval(),
        )
        save_file(network.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"architecture": architecture, "pretrained_cfg": pretrained}))
        return str(folder), network

    return make


def test_an_encoder_of_the_hub_is_judged_by_its_own_embeddings(
    manifest: Manifest, timm_folder: Callable[..., Any], in_process: Callable[..., None]
) -> None:
    mean, std = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)
    folder, network = timm_folder("test_resnet", input_size=[3, 64, 64], mean=mean, std=std, license="cc-by-nc-4.0")
    held_out = HeldOut(tiles=manifest.uri, batch_size=7, probe=PROBE)
    examined = examine(folder, held_out, STORAGE)
    batches = list(examined.examiner.batches(manifest.rows_of("test")))
    pixels = torch.cat([batch.student[batch.valid] for batch in batches]).double() / 255
    with torch.inference_mode():
        wanted = network.double()((pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    said = torch.cat([embed(examined.examiner.network, batch.student[batch.valid].float()) for batch in batches])
    assert torch.allclose(said.double(), wanted, atol=1e-4)
    assert examined.probe["licenses"] == "cc-by-nc-4.0"
    alone = score_model(folder, held_out, STORAGE)
    assert (alone.probe["width"], alone.size_px, alone.kind) == (wanted.shape[1], 64, "classification")
    in_process(histill.evaluate.representation.embed, backwards=True)
    shared = score_model(folder, held_out, STORAGE, workers=Workers(count=3))
    assert shared.figures == pytest.approx(alone.figures, abs=1e-6, nan_ok=True)


def test_an_encoder_of_the_hub_has_a_page_and_a_table(
    manifest: Manifest, timm_folder: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = timm_folder("test_vit", {"img_size": 64}, input_size=[3, 64, 64])
    config = ScoreConfig(
        model=folder, encoder=EncoderFacts(pooling="cls_mean", options=EncoderOptions(img_size=64)),
        held_out=HeldOut(tiles=manifest.uri, probe=PROBE), report=str(tmp_path / "one.html"),
        robustness_tiles=6, speed=False,
    )  # fmt: skip
    score = run_scoring(config)
    assert score.probe["width"] == 2 * 64
    assert "not on record" in (tmp_path / "one.html").read_text()
    nearest = f"{score.figures['knn_balanced_accuracy']:.3f}"
    assert re.search(rf"^balanced accuracy of nearest neighbors +{nearest}$", capsys.readouterr().err, re.MULTILINE)


def test_how_a_timm_folder_is_read_is_said_of_no_other(manifest: Manifest, model: Callable[..., str]) -> None:
    with pytest.raises(InputError, match=r"^encoder says how a timm folder is read, and .* leave encoder out"):
        examine(model(), HeldOut(tiles=manifest.uri), STORAGE, encoder=EncoderFacts(pooling="cls"))


def test_the_page_and_the_picture_show_the_probes_answers(
    manifest: Manifest, model: Callable[..., str], tmp_path: Path
) -> None:
    centers = tmp_path / "centers.csv"
    centers.write_text("case,center\n" + "".join(f"case-{each},{'xy'[each % 2]}\n" for each in range(10)))
    probe = PROBE.model_copy(update={"train": "val", "centers": Centers(table=str(centers))})
    config = ScoreConfig(
        model=model(), held_out=HeldOut(tiles=manifest.uri, split="train", probe=probe), bootstrap_samples=20,
        report=str(tmp_path / "one.html"), picture=str(tmp_path / "tiles.png"), robustness_tiles=48, speed=False,
    )  # fmt: skip
    score = run_scoring(config)
    page = (tmp_path / "one.html").read_text()
    for text in (
        "robustness index",
        "retrieval top 5",
        "balanced accuracy from 1 case for each class",
        "labels, by a linear probe",
    ):
        assert text in page, text
    assert (tmp_path / "tiles.png").read_bytes().startswith(b"\x89PNG")
    assert score.intervals.keys() == score.figures.keys()
    low, high = score.intervals["robustness_index"]
    assert 0 <= low <= score.figures["robustness_index"] <= high <= 1
    assert np.isnan(score.figures["few_shot_9_balanced_accuracy"])  # of one case
    # every tile once more, through encoder and probe in one: the same decisions
    assert score.robustness[UNCHANGED] == pytest.approx(score.figures["balanced_accuracy"])


def relabel(manifest: Manifest, folder: Path, labels: list[str | None]) -> str:
    """The same tiles with other labels."""
    place = read_table(manifest).schema.get_field_index("label")
    table = read_table(manifest).set_column(place, "label", pa.array(labels, pa.string()))
    for each in Path(manifest.uri).iterdir():
        (folder / each.name).symlink_to(each)
    for name in ("manifest.json", "manifest.parquet"):
        (folder / name).unlink()
    header = manifest.header
    write_manifest(str(folder), table, tile_px=header.tile_px, mpp=header.mpp, ingest="other", storage=STORAGE)
    return str(folder)


def test_tiles_without_a_label_teach_nothing(manifest: Manifest, model: Callable[..., str], tmp_path: Path) -> None:
    labels = read_table(manifest)["label"].to_pylist()
    tiles = relabel(manifest, tmp_path, [None if row < 12 else label for row, label in enumerate(labels)])
    score = score_model(model(), HeldOut(tiles=tiles, probe=PROBE), STORAGE)
    assert (score.probe["train_tiles"], score.probe["train_cases"]) == (36, 6)


@pytest.mark.parametrize(
    ("held_out", "labels", "named"),
    [
        ({"split": "train"}, "same", r"^held_out\.split is 'train', from which the probe .* learns"),
        ({"reference": Teacher(classical=True)}, "same", r"^held_out\.reference is for models that mark pixels"),
        ({}, "none", r"^split 'train' of .* has no labels, and the probe"),
        ({}, "one", r"^split 'train' of .* has the label 'stroma' alone"),
        ({}, "new", r"^tile case-9/54 of .* has the label 'fat' .* expected one of stroma, tumour"),
    ],
)
def test_what_no_probe_can_learn_is_refused(
    manifest: Manifest, model: Callable[..., str], tmp_path: Path, held_out: dict[str, Any], labels: str, named: str
) -> None:
    known = read_table(manifest)["label"].to_pylist()
    given = {"same": known, "none": [None] * 60, "one": ["stroma"] * 60, "new": known[:54] + ["fat"] * 6}[labels]
    with pytest.raises(InputError, match=named):
        score_model(model(), HeldOut(**{"tiles": relabel(manifest, tmp_path, given)} | held_out), STORAGE)


def test_undecodable_tiles_are_counted(
    tmp_path: Path, tile_set: Callable[..., Manifest], spoil_tile: Callable[..., str], model: Callable[..., str]
) -> None:
    spoilt = tile_set(tmp_path, tiles=60, cases=10, labels=True)
    spoil_tile(spoilt, 2)
    spoil_tile(spoilt, 55)
    held_out = HeldOut(tiles=spoilt.uri, max_corrupt=2, probe=PROBE)
    score = score_model(model(), held_out, STORAGE)
    assert (score.tiles, score.corrupt, score.probe["train_tiles"]) == (5, 1, 47)
    with pytest.raises(InputError, match="max_corrupt allows"):
        score_model(model(), held_out.model_copy(update={"max_corrupt": 1}), STORAGE)


NAMES, LABELS = np.array(["p", "p", "q", "q", "r", "r"]), np.array([0, 1, 0, 1, 0, 1])


def centers_of(folder: Path, text: str, by: str = "case") -> np.ndarray:
    (folder / "centers.csv").write_text(text)
    source = Centers.model_validate({"table": str(folder / "centers.csv"), "by": by, "column": "scanner"})
    return read_centers(source, NAMES, LABELS, STORAGE)


def test_centers_come_from_a_table_of_cases_or_the_index_of_slides(tmp_path: Path) -> None:
    expected = ["x", "x", "y", "y", "x", "x"]
    assert centers_of(tmp_path, "case,scanner\np,x\nq,y\nr,x\ns,z\n").tolist() == expected
    assert centers_of(tmp_path, "slide,scanner\na/p.svs,x\na/q.svs,y\nr,x\n", "slide").tolist() == expected
    repeated = "image,case,scanner\n1.png,p,x\n2.png,p,x\n3.png,q,y\n4.png,r,x\n"
    assert centers_of(tmp_path, repeated).tolist() == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("case,scanner\np,x\nq,y\n", r"has no scanner for case 'r' \(1 are missing\)"),
        ("case,scanner\np,x\nq,y\nr,x\np,y\n", r"^line 5 of .* puts case 'p' at 'y', and a line above at 'x'"),
        ("case,scanner\np,x\nq,x\nr,x\n", r"no two of x in .* share two classes"),
        ("case,center\np,x\n", "has no column 'scanner'"),
    ],
)
def test_centers_that_tell_nothing_are_refused(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        centers_of(tmp_path, text)
