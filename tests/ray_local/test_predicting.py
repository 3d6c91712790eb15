"""Predictions on the cluster: every tile once (test_kills.py says that it stays so whatever kills the job)."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow.fs import FileSelector

from histill.artifacts import model_folder
from histill.artifacts.model_folder import ModelCard, build
from histill.config.common import Storage, Workers
from histill.config.objects import Objects
from histill.config.predict_tiles import PredictConfig
from histill.errors import InputError
from histill.local.ray_head import RayHead
from histill.local.s3 import S3Server
from histill.predict.predict import HEADER_NAME, predict
from histill.storage.control import exists, read_bytes
from histill.storage.filesystems import arrow_filesystem
from histill.storage.uris import join
from histill.tiles.manifest import Manifest
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.ray_local

STORAGE = Storage()
TILES = 96


@pytest.fixture(scope="module")
def tiles(ray_local: RayHead, s3: S3Server, tile_set: Callable[..., Manifest]) -> Manifest:
    """96 tiles in twelve shards, of six slides."""
    return tile_set(f"s3://{s3.bucket}/predicting/tiles", tiles=TILES, masks=False)


@pytest.fixture(scope="module")
def model(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    card = ModelCard(
        kind="classification", encoder="csat_tiny", decoder_channels=(), classes=("stroma", "tumour"), mean=(0.5,) * 3,
        std=(0.2,) * 3, tile_px=64, tile_mpp=0.5, size_px=64, tiles_digest="tiles", train_cases=(), histill="0",
    )  # fmt: skip
    folder, uri = tmp_path_factory.mktemp("model"), f"s3://{s3.bucket}/predicting/model"
    torch.manual_seed(0)
    model_folder.save(str(folder), build(card), card)
    model_folder.copy(str(folder), uri, STORAGE)
    return uri


def files_below(uri: str, suffix: str) -> list[str]:
    filesystem, path = arrow_filesystem(uri, STORAGE)
    found = filesystem.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(f"s3://{info.path}" for info in found if info.path.endswith(suffix))


def seen(uri: str) -> Counter[str]:
    tables = [pq.read_table(pa.BufferReader(read_bytes(file, STORAGE))) for file in files_below(uri, ".parquet")]
    return Counter(name for table in tables for name in table["tile_id"].to_pylist())


def test_every_tile_is_there_once_and_a_finished_run_is_only_read(tiles: Manifest, model: str, s3: S3Server) -> None:
    keys: dict[str, Any] = {"model": model, "tiles": tiles.uri, "workers": Workers(count=2, cpus=0.5)}
    keys |= {"embeddings": True}
    config = PredictConfig(output=f"s3://{s3.bucket}/predicting/twice", **keys)
    first, again = predict(config), predict(config)
    assert (first.tiles, first.corrupt, sum(first.classes.values())) == (TILES, 0, TILES)
    assert seen(first.predictions) == Counter(read_table(tiles)["tile_id"].to_pylist())
    assert (first.heatmaps, first.features) == (6, 6)
    assert len(files_below(join(first.predictions, "features"), ".h5")) == 6
    heatmaps = files_below(join(first.predictions, "heatmaps"), "")
    assert [file.rpartition("/")[2] for file in heatmaps if "case-0" in file] == ["case-0.geojson", "case-0.png"]
    assert (first.reused, again.reused) == (False, True)
    assert vars(first) | {"reused": True} == vars(again)
    part = predict(config.model_copy(update={"split": "test", "heatmaps": False}))
    assert part.predictions != first.predictions
    assert part.tiles == tiles.header.splits["test"]


def test_objects_found_on_the_cluster_are_those_found_in_one_process(
    tiles: Manifest, s3: S3Server, tmp_path: Path
) -> None:
    card = ModelCard(
        encoder="csat_tiny", decoder_channels=(16, 16, 8, 8, 8), classes=("background", "nucleus"), mean=(0.5,) * 3,
        std=(0.2,) * 3, tile_px=64, tile_mpp=0.5, size_px=32, tiles_digest="tiles", train_cases=(), histill="0",
    )  # fmt: skip
    torch.manual_seed(0)
    model_folder.save(str(tmp_path), build(card), card)
    uri = f"s3://{s3.bucket}/predicting/segmenter"
    model_folder.copy(str(tmp_path), uri, STORAGE)
    found = []
    for count in (0, 2):
        output = f"s3://{s3.bucket}/predicting/objects-{count}"
        config = PredictConfig(
            model=uri, tiles=tiles.uri, output=output, workers=Workers(count=count, cpus=0.5), heatmaps=False,
            objects=Objects(min_um2=1.0), overlay_mpp=1.0,
        )  # fmt: skip
        made = predict(config)
        assert (made.detections, made.overlays) == (6, 6)
        files = files_below(join(made.predictions, "detections"), ".geojson")
        found.append([json.loads(read_bytes(file, STORAGE)) for file in files])
        assert len(files_below(join(made.predictions, "overlays"), ".ome.tif")) == 6
    assert found[0] == found[1]
    assert sum(each["slide"]["objects"]["nucleus"] for each in found[0]) > 50


def test_too_many_corrupt_tiles_leave_the_run_unfinished(
    model: str, s3: S3Server, tile_set: Callable[..., Manifest], spoil_tile: Callable[..., str]
) -> None:
    spoilt = tile_set(f"s3://{s3.bucket}/predicting/spoilt", masks=False)
    spoil_tile(spoilt, 2)
    output = f"s3://{s3.bucket}/predicting/corrupt"
    config = PredictConfig(model=model, tiles=spoilt.uri, output=output, workers=Workers(count=1, cpus=0.5))
    with pytest.raises(InputError, match=r"^1 tiles of .* max_corrupt allows 0; the others' predictions are kept"):
        predict(config)
    found = predict(config.model_copy(update={"max_corrupt": 1}))
    assert (found.tiles, found.corrupt) == (24, 1)
    assert exists(join(found.predictions, HEADER_NAME), STORAGE)
