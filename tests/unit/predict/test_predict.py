"""Predictions of whole slides: in the right place, of the right slide, and summed up for each."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openslide
import pandas
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from PIL import ImageCms

import histill.predict.predict
import histill.tiles.ingest
from histill.artifacts.model_folder import ModelCard, build, save
from histill.config.common import Storage
from histill.config.load import validate
from histill.config.predict_tiles import PredictConfig
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.predict.predict import Predicted, predict
from histill.predict.shard import prediction_schema
from histill.predict.slides_table import write_csv
from histill.tiles.manifest import Manifest
from histill.tiles.tally import SlideTally, join_tallies, tally_tiles

pytestmark = pytest.mark.unit

KINDS: dict[str, dict[str, Any]] = {
    "classification": {"kind": "classification", "decoder_channels": (), "classes": ("stroma", "tumour")},
    "multi_label": {"kind": "classification", "decoder_channels": (), "classes": ("a", "b,c"), "multi_label": True},
    "segmentation": {"decoder_channels": (16, 16, 8, 8, 8), "classes": ("background", "nucleus", "boundary")},
}
ENCODER: dict[str, Any] = {"kind": "encoder", "decoder_channels": (), "classes": ()}
MPP = 0.4541  # of slides: tiles of 64 px at 0.5 um/px have 70.47 pixels
SIDE = 64 * 0.5 / MPP


@pytest.fixture(autouse=True)
def _serial(in_process: Callable[..., None]) -> None:
    in_process(histill.predict.predict, histill.tiles.ingest)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`model(kind, folder=None, seed=0)`: a model folder for tiles of 64 px at 0.5 um/px."""

    made: dict[str, str] = {}

    def make(kind: str = "classification", folder: Path | None = None, seed: int = 0) -> str:
        if folder is None and kind in made:
            return made[kind]
        card = ModelCard(
            encoder="csat_tiny", mean=(0.5,) * 3, std=(0.2,) * 3, tile_px=64, tile_mpp=0.5, size_px=32,
            tiles_digest="tiles", train_cases=(), histill="0", **(KINDS | {"encoder": ENCODER})[kind],
        )  # fmt: skip
        if folder is None:
            folder = tmp_path_factory.mktemp("model")
            made[kind] = str(folder)
        torch.manual_seed(seed)
        save(str(folder), build(card), card)
        return str(folder)

    return make


def tissue(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 9, (height, width, 3))
    return np.clip(np.array((200.0, 110, 170)) + noise, 0, 255).astype(np.uint8)


def write_slide(path: Path, pixels: np.ndarray, mpp: float = MPP, icc: bytes | None = None) -> str:
    resolution = (1e4 / mpp, 1e4 / mpp)
    tifffile.imwrite(
        path, pixels, tile=(256, 256), photometric="rgb", resolution=resolution, resolutionunit="CENTIMETER",
        iccprofile=icc,
    )  # fmt: skip
    return str(path)


def predicted(model: str, slides: Sequence[str], output: Path, **keys: Any) -> Predicted:
    data = {"model": model, "slides": list(slides), "output": str(output), "workers": {"count": 1}}
    return predict(validate(PredictConfig, data | keys, "test"))


def features(found: Predicted, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(found.predictions, "heatmaps", f"{name}.geojson").read_text())
    return data


def squares(found: Predicted, name: str) -> np.ndarray:
    """[N, 4] left, top, right, bottom of each tile's square, read without the product."""
    rings = np.array([each["geometry"]["coordinates"][0] for each in features(found, name)["features"]])
    return np.concatenate([rings.min(1), rings.max(1)], axis=1)


def rows_of(found: Predicted) -> list[dict[str, Any]]:
    return [
        row for path in sorted(Path(found.predictions).rglob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def test_squares_lie_on_the_pixels_that_were_read(model: Callable[..., str], tmp_path: Path) -> None:
    """At a scale that is no whole number: a strip of tiles that touch, islands that do not, and one tile alone."""
    glass = np.full((160, 900, 3), 243, np.uint8)
    islands, alone = glass.copy(), glass.copy()
    for column in (0, 4, 11):
        islands[:150, int(column * SIDE) : int(column * SIDE) + 72] = tissue(150, 72, column)
    alone[:70, int(5 * SIDE) : int(5 * SIDE) + 72] = tissue(70, 72)
    pictures = {"strip": tissue(80, 71 * 40), "islands": islands, "alone": alone}
    slides = [write_slide(tmp_path / f"{name}.tif", pixels) for name, pixels in pictures.items()]
    found = predicted(model(), slides, tmp_path / "out")
    assert found.heatmaps == 3
    strip = squares(found, "strip")
    np.testing.assert_array_equal(strip[1:, 0], strip[:-1, 2])
    assert np.abs(strip[:, 0] - SIDE * np.arange(len(strip))).max() < 1
    for name, columns in (("islands", {0, 4, 11}), ("alone", {5})):
        found_squares = squares(found, name)
        assert set(np.rint(found_squares[:, 0] / SIDE).astype(int)) == columns
        assert np.abs(found_squares[:, 2:] - found_squares[:, :2] - SIDE).max() < 1
    assert features(found, "strip")["slide"]["tile_side"] == pytest.approx(SIDE, rel=1e-3)


def test_regions_of_a_slide_keep_their_squares(
    model: Callable[..., str], tmp_path: Path, tile_set: Callable[..., Manifest]
) -> None:
    from histill.config.ingest_tiles import IngestConfig
    from histill.tiles.ingest import ingest

    slide = write_slide(tmp_path / "s.tif", tissue(512, 1024), mpp=0.25)
    rows = f"slide,left,top,right,bottom\n{slide},0,0,0.3,1\n{slide},0.413,0.107,1,1\n"
    (tmp_path / "regions.csv").write_text(rows)
    config = {
        "output": str(tmp_path / "set"), "tile_px": 64, "slides": {"index": str(tmp_path / "regions.csv"), "mpp": 0.5},
        "split": {"train": 0.0, "val": 0.0, "test": 1.0},
    }  # fmt: skip
    ingest(validate(IngestConfig, config, "test"))
    data = {"model": model(), "tiles": str(tmp_path / "set"), "output": str(tmp_path / "out"), "workers": {"count": 1}}
    found = predict(validate(PredictConfig, data, "test"))
    np.testing.assert_array_equal(squares(found, "s")[:, 2:] - squares(found, "s")[:, :2], 128)
    assert {(row["x"], row["y"]) for row in rows_of(found)} == {tuple(each) for each in squares(found, "s")[:, :2]}


def test_squares_count_from_the_bounds_of_a_leica_slide(
    model: Callable[..., str], write_leica: Callable[..., str], tmp_path: Path
) -> None:
    slide = write_leica(tmp_path / "s.scn", tissue(256, 512), left=1000, top=640)
    properties = openslide.OpenSlide(slide).properties
    corner = [int(properties[f"openslide.bounds-{axis}"]) for axis in "xy"]
    assert corner != [0, 0]
    found = predicted(model(), [slide], tmp_path / "out", slide_mpp=0.5)
    drawn, rows = squares(found, "s"), rows_of(found)
    np.testing.assert_array_equal(drawn[:, :2] + corner, [[row["x"], row["y"]] for row in rows])
    assert drawn.min() > -64
    assert (drawn[:, 2].max() <= 512 + 64, drawn[:, 3].max() <= 256 + 64) == (True, True)
    assert features(found, "s")["slide"]["bounds"] == {"x": corner[0], "y": corner[1]}


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_a_slide_is_predicted_as_its_tile_set_is(
    model: Callable[..., str], write_leica: Callable[..., str], tmp_path: Path, kind: str
) -> None:
    """Cut while it is predicted, cut into a tile set that is kept, and ingested before: the same files to the last bit.

    One slide is of deflated tiles, and one of a scanner that states an origin of its own; one is at a whole scale.
    """
    from histill.config.ingest_tiles import IngestConfig
    from histill.tiles.ingest import ingest

    glass = np.full((160, 300, 3), 243, np.uint8)
    slides = [
        write_slide(tmp_path / "a.tif", np.concatenate([tissue(160, 600), glass], axis=1)),
        write_slide(tmp_path / "b.tif", tissue(300, 700, 1), mpp=0.25),
        write_leica(tmp_path / "c.scn", tissue(256, 512, 2), left=1000, top=640),
    ]  # fmt: skip
    keys: dict[str, Any] = {"masks": kind == "segmentation", "slide_mpp": 0.5}
    direct = predicted(model(kind), slides, tmp_path / "direct", **keys)
    kept = predicted(model(kind), slides, tmp_path / "kept", keep_tiles=True, **keys)
    ingest(validate(IngestConfig, {
        "output": str(tmp_path / "tiles"), "tile_px": 64, "slides": {"paths": slides, "mpp": 0.5, "slide_mpp": 0.5},
        "split": {"train": 0.0, "val": 0.0, "test": 1.0},
    }, "test"))  # fmt: skip
    data = {"model": model(kind), "tiles": str(tmp_path / "tiles"), "output": str(tmp_path / "out")}
    ingested = predict(validate(PredictConfig, data | {"masks": keys["masks"], "workers": {"count": 1}}, "test"))
    assert direct.tiles > 20
    for found in (kept, ingested):
        assert rows_of(found) == rows_of(direct)
        assert table_of(found) == table_of(direct)
        for name in ("a", "b", "c"):
            assert features(found, name) == features(direct, name)
            pictures = [Path(each.predictions, "heatmaps", f"{name}.png").read_bytes() for each in (found, direct)]
            assert pictures[0] == pictures[1]
    written = {name: list((tmp_path / name).glob("*/shards/**/*.parquet")) for name in ("direct", "kept")}
    assert {name: sum("image" in pq.read_schema(path).names for path in paths) for name, paths in written.items()} == {
        "direct": 0, "kept": 3,
    }  # fmt: skip


def test_slides_are_converted_by_their_icc_profile_as_the_training_tiles_were(
    model: Callable[..., str], tmp_path: Path
) -> None:
    from histill.artifacts.model_folder import load
    from histill.config.ingest_tiles import IngestConfig
    from histill.tiles.ingest import ingest

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")  # red and green change places
    swapped = bytearray(profile)
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    slide = write_slide(tmp_path / "a.tif", tissue(256, 512), icc=bytes(swapped))
    network, card, digest = load(model(), Storage())
    assert card.icc is None
    (tmp_path / "srgb").mkdir()
    save(str(tmp_path / "srgb"), network, card.model_copy(update={"icc": "srgb"}))
    assert load(str(tmp_path / "srgb"), Storage())[2] != digest
    found = {
        keep: predicted(str(tmp_path / "srgb"), [slide], tmp_path / "out", keep_tiles=keep) for keep in (False, True)
    }
    keys = {"paths": [slide], "mpp": 0.5, "icc": "srgb"}
    ingest(validate(IngestConfig, {"output": str(tmp_path / "tiles"), "tile_px": 64, "slides": keys}, "test"))
    data = {"model": str(tmp_path / "srgb"), "tiles": str(tmp_path / "tiles"), "output": str(tmp_path / "out")}
    ingested = predict(validate(PredictConfig, data | {"workers": {"count": 1}}, "test"))
    assert rows_of(found[False]) == rows_of(found[True]) == rows_of(ingested)
    plain = predicted(model(), [slide], tmp_path / "out")
    said = [[row["probabilities"] for row in rows_of(each)] for each in (plain, ingested)]
    assert len(said[0]) == len(said[1]) > 10
    assert all(ours != others for ours, others in zip(*said, strict=True))


@pytest.mark.parametrize("kind", ["classification", "encoder"])
def test_another_engine_gives_the_same_predictions_and_is_named(
    write_small_model: Callable[[str, Path], str],
    node: Storage,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    slide, folder = write_slide(tmp_path / "a.tif", tissue(160, 300)), tmp_path / "model"
    folder.mkdir()
    small = write_small_model(kind, folder)
    plain = predicted(small, [slide], tmp_path / "torch", engine="torch")
    assert "engine: torch, as asked for" in capfd.readouterr().err
    other = predicted(small, [slide], tmp_path / "other", engine="onnxruntime", storage=node.model_dump())
    assert capfd.readouterr().err.count("engine: onnxruntime ") == 1
    assert (plain.engine, other.engine, other.tiles) == ("torch", "onnxruntime", 8)
    for one, two in zip(rows_of(plain), rows_of(other), strict=True):
        assert (one["tile_id"], one["class"]) == (two["tile_id"], two["class"])
        assert one["probabilities"] == pytest.approx(two["probabilities"], abs=1e-4)
        if kind == "encoder":
            assert one["embedding"] == pytest.approx(two["embedding"], abs=2e-3)
    assert predicted(small, [slide], tmp_path / "other").engine == "onnxruntime"  # which made them


def test_a_classifiers_embeddings_are_of_torch_which_is_said(
    model: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    slide = write_slide(tmp_path / "a.tif", tissue(160, 300))
    found = predicted(model(), [slide], tmp_path / "out", embeddings=True)
    assert found.engine == "torch"
    assert capfd.readouterr().err.count("engine: torch, which gives embeddings beside the classes") == 1


def test_an_engine_is_chosen_for_the_tiles_that_are_left(
    model: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of two slides with 8 each."""
    slides = [write_slide(tmp_path / f"{name}.tif", tissue(160, 300)) for name in "ab"]
    keys = {"engine": "auto", "workers": {"count": 0}}
    first = predicted(model(), slides, tmp_path / "out", **keys)
    assert "as starting another for 16 tiles would not pay" in capfd.readouterr().err
    Path(first.predictions, "predictions.json").unlink()
    shards = sorted(Path(first.predictions).rglob("*.parquet"))
    shards[0].unlink()
    assert predicted(model(), slides, tmp_path / "out", **keys).tiles == 16
    assert "as starting another for 8 tiles would not pay" in capfd.readouterr().err


def test_a_slide_in_object_storage_is_one_piece_of_work_where_all_workers_get_one(
    model: Callable[..., str], tmp_path: Path
) -> None:
    """Each worker that has a part of a slide fetches all of it."""
    from histill.config.common import Storage
    from histill.config.ingest_tiles import IngestConfig, SlideSource, SplitRule
    from histill.predict.predict import bundle_shards
    from histill.predict.shard import PredictionJob, PredictionWorker
    from histill.tiles.ingest import ingest

    slides = [write_slide(tmp_path / f"{name}.tif", tissue(160, 600)) for name in "ab"]
    source = SlideSource(paths=tuple(slides), mpp=0.5).for_prediction(cut=False)
    places = IngestConfig(
        output=str(tmp_path / "places"), tile_px=64, slides=source, rows_per_shard=5, rows_per_group=5
    )
    manifest = ingest(places.model_copy(update={"split": SplitRule(train=0, val=0, test=1)})).manifest
    shards = manifest.shards()
    assert len(shards) == 8
    data = {"model": model(), "output": str(tmp_path / "out"), "workers": {"count": 2}}
    local = validate(PredictConfig, data | {"slides": slides}, "test")
    remote = validate(PredictConfig, data | {"slides": ["s3://bucket/a.tif", "s3://bucket/b.tif"]}, "test")
    assert bundle_shards(manifest, local) == shards
    bundles = bundle_shards(manifest, remote)
    assert bundles == ["\n".join(shards[:4]), "\n".join(shards[4:])]
    more = remote.model_copy(update={"workers": remote.workers.model_copy(update={"count": 3})})
    assert bundle_shards(manifest, more) == shards
    digest = histill.predict.predict.load(model(), Storage())[2]
    job = PredictionJob(local, model(), manifest.uri, str(tmp_path / "out"), digest, manifest.header.digest, 16)
    (tally,) = PredictionWorker(job)(bundles[0])["slides"][:1]
    assert sum(each["tiles"] for each in PredictionWorker(job)(bundles[0])["slides"]) == manifest.header.tiles // 2
    assert tally["slide"] == "a"


def test_an_engine_that_cannot_do_it_is_refused(model: Callable[..., str], tmp_path: Path) -> None:
    from histill.predict.check_places import check_model

    data = {"model": model(), "tiles": "tiles", "output": str(tmp_path), "engine": "openvino"}
    with pytest.raises(InputError, match=r"engine openvino runs on CPUs; leave it out, or set workers\.gpus=0"):
        validate(PredictConfig, data | {"workers": {"gpus": 1}}, "test")
    config = validate(PredictConfig, data | {"tiles": None, "slides": ["a.svs"], "embeddings": True}, "test")
    with pytest.raises(InputError, match=r"engine=openvino gives the classes of .*; leave engine out"):
        check_model(config)


def test_places_of_tiles_are_no_tile_set(model: Callable[..., str], tmp_path: Path) -> None:
    from histill.config.common import Storage
    from histill.tiles.manifest_file import read_manifest

    predicted(model(), [write_slide(tmp_path / "a.tif", tissue(160, 300))], tmp_path / "out")
    (places,) = (tmp_path / "out").glob("places-*")
    assert read_manifest(str(places), Storage(), cut=False).header.tiles == 8
    with pytest.raises(
        InputError, match=r"holds the places of tiles .*; predict the slides with keep_tiles=true"
    ) as raised:
        read_manifest(str(places), Storage())
    assert raised.value.code == "tiles-missing"


def test_a_slide_that_is_replaced_while_it_is_predicted_is_named(
    model: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import histill.predict.shard

    slide = write_slide(tmp_path / "a.tif", tissue(160, 300))
    read = histill.predict.shard.TileCutter

    def replaced(*arguments: Any) -> Any:
        write_slide(tmp_path / "a.tif", tissue(160, 600))
        return read(*arguments)

    monkeypatch.setattr(histill.predict.shard, "TileCutter", replaced)
    with pytest.raises(
        InputError, match=r"a\.tif was replaced while this job was reading it; run the same command again"
    ):
        predicted(model(), [slide], tmp_path / "out")
    monkeypatch.undo()


def test_a_slide_that_is_replaced_gets_predictions_of_its_own(model: Callable[..., str], tmp_path: Path) -> None:
    slide, folder = write_slide(tmp_path / "a.tif", tissue(160, 300, 1)), model()
    first = predicted(folder, [slide], tmp_path / "out")
    again = predicted(folder, [slide], tmp_path / "out")
    assert (again.reused, again.predictions) == (True, first.predictions)
    write_slide(tmp_path / "a.tif", tissue(160, 600, 2))
    other = predicted(folder, [slide], tmp_path / "out")
    assert (other.reused, other.predictions != first.predictions) == (False, True)
    assert (first.tiles, other.tiles) == (2 * 4, 2 * 8)
    write_slide(tmp_path / "b.tif", tissue(80, 80))
    more = predicted(folder, [slide, str(tmp_path / "b.tif")], tmp_path / "out")  # added to the list later
    assert (more.tiles, more.heatmaps) == (2 * 8 + 1, 2)


def test_a_slide_that_lies_elsewhere_on_its_stage_gets_squares_of_its_own(
    model: Callable[..., str], write_leica: Callable[..., str], tmp_path: Path
) -> None:
    """The same pixels, and so the same tiles: but not the same place."""
    folder, found = model(), []
    for left in (1024, 2048):
        slide = write_leica(tmp_path / "s.scn", tissue(256, 512), left=left, top=640)
        found.append(predicted(folder, [slide], tmp_path / "out", slide_mpp=0.5))
        assert features(found[-1], "s")["slide"]["bounds"]["x"] == left
    assert found[0].predictions != found[1].predictions


def test_a_model_that_is_replaced_gets_predictions_of_its_own(model: Callable[..., str], tmp_path: Path) -> None:
    slide, folder = write_slide(tmp_path / "a.tif", tissue(160, 300)), tmp_path / "model"
    folder.mkdir()
    first = predicted(model(folder=folder), [slide], tmp_path / "out")
    other = predicted(model(folder=folder, seed=1), [slide], tmp_path / "out")
    assert (other.reused, other.predictions != first.predictions) == (False, True)
    assert rows_of(first)[0]["probabilities"] != rows_of(other)[0]["probabilities"]


def test_other_ways_of_cutting_do_not_refuse_each_other(model: Callable[..., str], tmp_path: Path) -> None:
    slide, folder = write_slide(tmp_path / "a.tif", tissue(160, 300)), model()
    one, two = (predicted(folder, [slide], tmp_path / "out", min_tissue=least) for least in (0.25, 0.3))
    assert one.tiles == two.tiles


def test_heatmaps_are_drawn_when_they_are_asked_for(model: Callable[..., str], tmp_path: Path) -> None:
    slide, folder = write_slide(tmp_path / "患者甲.tif", tissue(160, 300)), model()
    none = predicted(folder, [slide], tmp_path / "out", heatmaps=False)
    assert (none.heatmaps, Path(none.predictions, "heatmaps").exists()) == (0, False)
    drawn = predicted(folder, [slide], tmp_path / "out")
    assert (drawn.heatmaps, drawn.reused, drawn.predictions) == (1, True, none.predictions)
    assert sorted(os.listdir(Path(none.predictions, "heatmaps"))) == ["患者甲.geojson", "患者甲.png"]
    assert predicted(folder, [slide], tmp_path / "out", heatmaps=False).heatmaps == 1
    for lost in ("slides.csv", "heatmaps/患者甲.png"):
        Path(none.predictions, lost).unlink()
        assert predicted(folder, [slide], tmp_path / "out").heatmaps == 1
        assert Path(none.predictions, lost).exists()


def test_a_split_draws_the_slides_that_it_has(
    model: Callable[..., str], tmp_path: Path, tile_set: Callable[..., Manifest], capfd: pytest.CaptureFixture[str]
) -> None:
    tiles = tile_set(tmp_path / "tiles")
    data = {"model": model(), "tiles": tiles.uri, "output": str(tmp_path / "out"), "split": "test"}
    found = predict(validate(PredictConfig, data, "test"))
    assert (found.tiles, found.heatmaps) == (4, 1)
    assert [row["slide"] for row in table_of(found)] == ["case-5"]
    np.testing.assert_array_equal(squares(found, "case-5")[:, 2] - squares(found, "case-5")[:, 0], 64)
    assert "has no record of 1 of its slides" in capfd.readouterr().err


def test_a_heatmap_is_not_drawn_of_a_part_of_the_predictions(model: Callable[..., str], tmp_path: Path) -> None:
    slide, folder = write_slide(tmp_path / "a.tif", tissue(160, 300)), model()
    found = predicted(folder, [slide], tmp_path / "out", heatmaps=False)
    (shard,) = Path(found.predictions).rglob("*.parquet")
    column = pq.read_metadata(shard).row_group(0).column(prediction_schema().get_field_index("class"))
    data = bytearray(shard.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1  # as long as it was
    shard.write_bytes(data)
    with pytest.raises(InputError, match="are missing or damaged; delete"):
        predicted(folder, [slide], tmp_path / "out")
    Path(found.predictions, "predictions.json").unlink()  # as it says
    again = predicted(folder, [slide], tmp_path / "out")
    assert (again.heatmaps, again.tiles, len(squares(again, "a"))) == (1, 8, 8)


def table_of(found: Predicted) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(found.slides).read_text(encoding="utf-8"))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_sums_up_each_slide(
    model: Callable[..., str], tmp_path: Path, tile_set: Callable[..., Manifest], kind: str
) -> None:
    """Opened by pandas, and held against the predictions of the tiles as pandas sums them up."""
    tiles = tile_set(tmp_path / "tiles")
    data = {"model": model(kind), "tiles": tiles.uri, "output": str(tmp_path / "out"), "masks": kind == "segmentation"}
    found = predict(validate(PredictConfig, data, "test"))
    table = pandas.read_csv(found.slides)
    rows = pandas.DataFrame(rows_of(found))
    classes = KINDS[kind]["classes"][:2]
    mean = "share" if kind == "segmentation" else "mean_probability"
    columns = [f"{mean}_{name}" for name in classes] + [f"tiles_{name}" for name in classes]
    columns += ["tiles_none"] if kind == "multi_label" else []
    assert list(table) == ["slide", "case", "tiles", "undecodable", "area_mm2", *columns, "heatmap"]
    assert table["slide"].tolist() == table["heatmap"].tolist() == [f"case-{number}" for number in range(6)]
    assert table["area_mm2"].tolist() == pytest.approx([4 * 0.032**2] * 6)
    for slide, group in rows.groupby("slide"):
        (line,) = table[table["slide"] == slide].to_dict("records")
        values = np.stack(group["probabilities"].tolist())
        assert (line["tiles"], line["case"], line["undecodable"]) == (len(group), group["case"].iloc[0], 0)
        for index, name in enumerate(classes):
            assert line[f"{mean}_{name}"] == pytest.approx(values[:, index].mean(), abs=2e-6)
            if kind == "multi_label":
                assert line[f"tiles_{name}"] == (values[:, index] > 0.5).sum()
            elif kind == "classification":
                assert line[f"tiles_{name}"] == (values.argmax(1) == index).sum()
        if kind == "segmentation":
            inside = np.array([np.asarray(_opened(mask)) > 0 for mask in group["mask"]]).mean((1, 2))
            assert line["share_nucleus"] == pytest.approx(inside.mean(), abs=2e-6)
            assert line["tiles_nucleus"] == (inside >= 0.01).sum()
        if kind == "multi_label":
            assert line["tiles_none"] == (values <= 0.5).all(1).sum()
    assert sum(found.classes.values()) == 24


def _opened(mask: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(mask))


def test_slides_without_tiles_are_named(model: Callable[..., str], tmp_path: Path) -> None:
    blank = write_slide(tmp_path / "blank.tif", np.full((200, 200, 3), 245, np.uint8))
    found = predicted(model(), [write_slide(tmp_path / "a.tif", tissue(160, 300)), blank], tmp_path / "out")
    assert len(found.skipped) == 1
    assert blank in found.skipped[0]
    assert {row["slide"]: row["tiles"] for row in table_of(found)} == {"a": "8", "blank": "0"}
    assert vars(predicted(model(), [str(tmp_path / "a.tif"), blank], tmp_path / "out")) == vars(found) | {
        "reused": True
    }


def test_regions_bound_what_is_predicted(
    model: Callable[..., str], write_leica: Callable[..., str], tmp_path: Path
) -> None:
    """Polygons of any class, counted from the bounds; a region that is drawn anew gives predictions of its own."""
    slides = [
        write_leica(tmp_path / "a.scn", tissue(256, 512), left=1000, top=640),
        write_slide(tmp_path / "b.tif", tissue(160, 300, 1)),
    ]
    regions = [str(tmp_path / f"{name}.geojson") for name in "ab"]

    def draw(path: str, left: float, top: float, right: float, bottom: float) -> None:
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        shape = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
        Path(path).write_text(json.dumps(shape))

    whole = predicted(model(), slides, tmp_path / "out", slide_mpp=0.5)
    draw(regions[0], 100, 0, 300, 100)
    draw(regions[1], 1000, 0, 1010, 10)
    keys: dict[str, Any] = {"slide_mpp": 0.5, "regions": regions}
    found = predicted(model(), slides, tmp_path / "out", **keys)
    middles = (squares(whole, "a")[:, :2] + squares(whole, "a")[:, 2:]) / 2
    inside = (middles > (100, 0)).all(1) & (middles < (300, 100)).all(1)
    np.testing.assert_array_equal(squares(found, "a"), squares(whole, "a")[inside])
    assert found.tiles == inside.sum() > 2
    assert "no tile with tissue has its center in one of the 1 polygons" in found.skipped[0]
    places = [(row["x"], row["y"], row["probabilities"]) for row in rows_of(whole) if row["slide"] == "a"]
    assert all((row["x"], row["y"], row["probabilities"]) in places for row in rows_of(found))
    assert predicted(model(), slides, tmp_path / "out", **keys).reused
    draw(regions[1], 0, 0, 300, 160)
    again = predicted(model(), slides, tmp_path / "out", **keys)
    assert again.predictions != found.predictions
    assert again.tiles == found.tiles + 8
    with pytest.raises(InputError, match="regions are 1 files and slides are 2"):
        predicted(model(), slides, tmp_path / "out", regions=regions[:1])
    (tmp_path / "b.geojson").unlink()
    with pytest.raises(InputError, match=r"b\.geojson does not exist"):
        predicted(model(), slides, tmp_path / "out", **keys)


def test_undecodable_tiles_have_no_share() -> None:
    import pyarrow as pa

    table = pa.table(
        {"slide": ["s", "s", "t"], "class": ["a", None, None], "probabilities": [[0.25, 0.75], None, None]}
    )
    parts = tally_tiles(table, np.array([0.5, 0.5, 0.5]), 2)
    assert parts[0] == SlideTally("s", 2, 1, 0.5, {"a": 1}, [0.25, 0.75])
    joined = join_tallies([*parts, parts[0]])
    assert joined["s"] == SlideTally("s", 4, 2, 1.0, {"a": 2}, [0.5, 1.5])
    lines = list(
        csv.reader(
            io.StringIO(
                write_csv(joined.values(), OutputSpec("segmentation", ("a", "b")), {"s": ["1", "2"]}, {}).decode()
            )
        )
    )
    assert lines[1:] == [
        ["s", "1|2", "4", "2", "1.000000", "0.250000", "0.750000", "2", "0", ""],
        ["t", "", "1", "1", "0.000000", "", "", "0", "0", ""],
    ]


def test_a_slide_that_is_not_there_is_named(model: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.tif does not exist"):
        predicted(model(), [str(tmp_path / "nowhere.tif")], tmp_path / "out")


def test_files_of_slides_that_differ_outside_ascii(model: Callable[..., str], tmp_path: Path) -> None:
    names: Mapping[str, int] = {"患者甲": 2, "患者乙": 4}
    slides = [write_slide(tmp_path / f"{name}.tif", tissue(80, 75 * tiles)) for name, tiles in names.items()]
    found = predicted(model(), slides, tmp_path / "out")
    assert {name: len(squares(found, name)) for name in names} == names


@pytest.mark.parametrize("kind", ["encoder", "classification", "segmentation"])
def test_embeddings_lie_in_a_column_and_in_a_file_for_each_slide(
    model: Callable[..., str], tmp_path: Path, kind: str
) -> None:
    sizes = {"a": (160, 300), "b": (80, 80)}
    slides = [write_slide(tmp_path / f"{name}.tif", tissue(*size)) for name, size in sizes.items()]
    found = predicted(model(kind), slides, tmp_path / "out", **({} if kind == "encoder" else {"embeddings": True}))
    assert (found.tiles, found.features, found.heatmaps) == (9, 2, 0 if kind == "encoder" else 2)
    assert sum(found.classes.values()) == (0 if kind == "encoder" else 9)
    rows = rows_of(found)
    for name, (height, width) in sizes.items():
        mine = [row for row in rows if row["slide"] == name]
        with h5py.File(Path(found.predictions, "features", f"{name}.h5"), "r") as file:
            assert file["coords"][:].tolist() == [[row["x"], row["y"]] for row in mine]
            np.testing.assert_array_equal(file["features"][:], np.array([row["embedding"] for row in mine], np.float32))
            assert len(np.unique(file["features"][:], axis=0)) == len(mine)
            about = dict(file["coords"].attrs)
        assert {key: about[key] for key in ("patch_size", "patch_size_level0", "level0_width", "level0_height")} == {
            "patch_size": 64, "patch_size_level0": round(SIDE), "level0_width": width, "level0_height": height,
        }  # fmt: skip
        assert (about["level0_magnification"], about["target_magnification"]) == (20, 20)
    assert {row["slide"]: row["tiles"] for row in table_of(found)} == {"a": "8", "b": "1"}
    Path(found.predictions, "features", "b.h5").unlink()
    again = predicted(model(kind), slides, tmp_path / "out", embeddings=True)
    assert (again.reused, again.features) == (True, 2)
    assert Path(found.predictions, "features", "b.h5").exists()
    if kind == "encoder":
        assert {row["class"] for row in rows} == {""}
        return
    plain = predicted(model(kind), slides, tmp_path / "out")
    assert (plain.predictions != found.predictions, plain.features) == (True, 0)
    for one, other in zip(rows_of(plain), rows, strict=True):
        assert one["class"] == other["class"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
        assert "embedding" not in one
