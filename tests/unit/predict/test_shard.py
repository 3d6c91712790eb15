"""Predictions of a shard, and what is drawn of them."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from histill.artifacts.model_folder import ModelCard, build, load, save
from histill.config.common import Storage
from histill.config.load import validate
from histill.config.predict_tiles import PredictConfig
from histill.errors import InputError
from histill.models.encoders import embed
from histill.predict.shard import ABOUT, FOREGROUND, PredictionJob, PredictionWorker, prediction_schema
from histill.stream.tile_stream import stream_shard
from histill.tiles.manifest import Manifest, read_header
from histill.tiles.shards import shards_of
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

STORAGE = Storage()
KINDS: dict[str, dict[str, Any]] = {
    "classification": {"kind": "classification", "decoder_channels": (), "classes": ("stroma", "tumour")},
    "multi_label": {"kind": "classification", "decoder_channels": (), "classes": ("a", "b", "c"), "multi_label": True},
    "segmentation": {"decoder_channels": (16, 16, 8, 8, 8), "classes": ("background", "nucleus", "boundary")},
}
ENCODER: dict[str, Any] = {"kind": "encoder", "decoder_channels": (), "classes": ()}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    def make(kind: str) -> str:
        card = ModelCard(
            encoder="csat_tiny", mean=(0.5,) * 3, std=(0.2,) * 3, tile_px=64, tile_mpp=0.5, size_px=32,
            tiles_digest="tiles", train_cases=(), histill="0", **(KINDS | {"encoder": ENCODER})[kind],
        )  # fmt: skip
        folder = tmp_path_factory.mktemp("model")
        torch.manual_seed(0)
        save(str(folder), build(card), card)
        return str(folder)

    return make


def predicting(model: str, tiles: str, out: Path, **keys: Any) -> PredictionJob:
    config = validate(
        PredictConfig, {"model": model, "tiles": tiles, "output": str(out), "batch_size": 3} | keys, "test"
    )
    header = read_header(tiles, STORAGE)
    return PredictionJob(config, model, tiles, str(out), load(model, STORAGE)[2], header.digest, header.tiles)


def predicted(job: PredictionJob, manifest: Manifest) -> tuple[list[tuple[int, int]], pa.Table]:
    """Tiles and undecodable ones of each shard, and what is written."""
    worker = PredictionWorker(job)
    done = [worker(name)["slides"] for name in manifest.shards(job.config.split)]
    counts = [(sum(each["tiles"] for each in said), sum(each["undecodable"] for each in said)) for said in done]
    return counts, pa.concat_tables(pq.read_table(path) for path in sorted(Path(job.uri).rglob("*.parquet")))


@pytest.mark.parametrize("kind", KINDS)
def test_every_tile_has_the_models_own_answer(
    manifest: Manifest, model: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    folder, segmenter = model(kind), kind == "segmentation"
    job = predicting(folder, manifest.uri, tmp_path, masks=segmenter)
    done, table = predicted(job, manifest)
    assert done == [(8, 0)] * 3
    assert table.schema == prediction_schema(masks=segmenter)
    assert table["tile_id"].to_pylist() == read_table(manifest)["tile_id"].to_pylist()
    assert table.select(["slide", "x", "y"]).to_pylist() == read_table(manifest).select(["slide", "x", "y"]).to_pylist()
    network, card, digest = load(folder, STORAGE)
    assert json.loads(table.schema.metadata[ABOUT]) == {
        "kind": card.kind, "classes": ["background", "nucleus"] if segmenter else list(card.classes),
        "multi_label": kind == "multi_label", "tile_px": 64, "tile_mpp": 0.5, "model": digest,
    }  # fmt: skip
    first = pq.read_table(Path(manifest.uri, read_table(manifest)["shard"][0].as_py()))["image"][0].as_py()
    pixels = np.array(Image.open(io.BytesIO(first))).reshape(32, 2, 32, 2, 3).mean((1, 3)).round()
    with torch.inference_mode():
        logits = network(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())[0]
    row = table.slice(0, 1).to_pylist()[0]
    if segmenter:
        mask = np.array(Image.open(io.BytesIO(row["mask"])))
        assert (mask.shape, mask.max() <= 1) == ((64, 64), True)  # a boundary is no class
        assert row["probabilities"] == pytest.approx([(mask == k).mean() for k in (0, 1)], abs=1e-6)
        assert row["class"] == ("nucleus" if (mask > 0).mean() >= FOREGROUND else "background")
        return
    expected = logits.sigmoid() if kind == "multi_label" else logits.softmax(0)
    assert row["probabilities"] == pytest.approx(expected.tolist(), abs=0.02)  # a JPEG is shrunk in its own domain
    chosen = [name for name, value in zip(card.classes, row["probabilities"], strict=True) if value > 0.5]
    assert row["class"] == "|".join(chosen)


@pytest.mark.parametrize("kind", ["encoder", *KINDS])
def test_a_tiles_embedding_is_the_networks_own_and_an_undecodable_one_has_none(
    tmp_path: Path, tile_set: Callable[..., Manifest], spoil_tile: Callable[..., str], model: Callable[[str], str],
    kind: str,
) -> None:  # fmt: skip
    spoilt, folder = tile_set(tmp_path / "tiles"), model(kind)
    name = spoil_tile(spoilt, 2)
    job = predicting(folder, spoilt.uri, tmp_path / "out", embeddings=True)
    done, table = predicted(job, spoilt)
    assert done == [(8, 1), (8, 0), (8, 0)]
    assert table.schema == prediction_schema(embeddings=True)
    assert table.schema.field("embedding").type == pa.list_(pa.float16())
    assert [row["tile_id"] for row in table.to_pylist() if row["embedding"] is None] == [name]
    network, _, _ = load(folder, STORAGE)
    batch = next(
        stream_shard(spoilt, shards_of(spoilt)[1], STORAGE, rows=np.arange(8, 16), side_px=32, batch_size=8)
    )  # fmt: skip
    with torch.inference_mode():
        expected = embed(network, batch.student.float()).numpy()
    np.testing.assert_allclose(
        np.array(table["embedding"].to_pylist()[8:16], np.float32), expected, rtol=2e-3, atol=1e-3
    )


def test_an_embedding_that_float16_cannot_hold_is_refused(
    manifest: Manifest, model: Callable[[str], str], tmp_path: Path
) -> None:
    worker = PredictionWorker(predicting(model("encoder"), manifest.uri, tmp_path, embeddings=True))
    worker._network.register_forward_hook(lambda module, tiles, answer: answer + 1e6)
    with pytest.raises(InputError, match=r"beyond \+-65504, which float16 cannot hold"):
        worker(manifest.shards()[0])


def test_a_shard_is_predicted_once(manifest: Manifest, model: Callable[[str], str], tmp_path: Path) -> None:
    job = predicting(model("classification"), manifest.uri, tmp_path)
    predicted(job, manifest)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    first, *others = sorted(written)
    first.write_bytes(first.read_bytes()[:99])  # as if a disk had lost the rest
    done, table = predicted(job, manifest)
    assert done == [(8, 0)] * 3
    assert table.num_rows == 24
    assert {path: path.stat().st_mtime_ns for path in others} == {path: written[path] for path in others}


def test_a_split_alone(manifest: Manifest, model: Callable[[str], str], tmp_path: Path) -> None:
    done, table = predicted(predicting(model("classification"), manifest.uri, tmp_path, split="test"), manifest)
    assert done == [(4, 0)]
    assert set(table["case"].to_pylist()) == {"case-5"}


def test_an_undecodable_tile_has_a_place_and_no_class(
    tmp_path: Path, tile_set: Callable[..., Manifest], spoil_tile: Callable[..., str], model: Callable[[str], str]
) -> None:
    spoilt = tile_set(tmp_path / "tiles")
    name = spoil_tile(spoilt, 2)
    done, table = predicted(predicting(model("classification"), spoilt.uri, tmp_path / "out"), spoilt)
    assert done == [(8, 1), (8, 0), (8, 0)]
    (row,) = [row for row in table.to_pylist() if row["class"] is None]
    assert (row["tile_id"], row["probabilities"]) == (name, None)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({}, "exactly one of tiles"),
        ({"tiles": "/t", "slides": ["/a.svs"]}, "exactly one of tiles"),
        ({"slides": []}, "slides names no file; set exactly one of tiles"),
        ({"slides": ["/a.svs"], "split": "test"}, "split is of a tile set"),
    ],
)
def test_one_source_is_named(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        validate(PredictConfig, {"model": "/m", "output": "/o"} | keys, "test")


@pytest.mark.parametrize("replaced", ["model_digest", "tiles_digest"])
def test_what_is_replaced_meanwhile_does_not_answer_for_the_other(
    manifest: Manifest, model: Callable[[str], str], tmp_path: Path, replaced: str
) -> None:
    job = replace(predicting(model("classification"), manifest.uri, tmp_path), **{replaced: "of another"})
    with pytest.raises(InputError, match="was replaced while this job was reading it"):
        PredictionWorker(job)
