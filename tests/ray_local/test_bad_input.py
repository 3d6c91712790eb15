"""What a user gets wrong is refused by the job with the file, the value, and what was expected."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from histill.artifacts import model_folder
from histill.artifacts.model_folder import ModelCard
from histill.config.common import Storage
from histill.local.ray_head import RayHead
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import write_manifest
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.ray_local


@dataclass(frozen=True)
class Fault:
    """A job, its overrides, and what it must say of them."""

    script: str
    keys: Mapping[str, str]
    said: str


@dataclass(frozen=True)
class Desk:
    """What faults are made of."""

    folder: Path
    tile_set: Callable[..., Manifest]
    mark_mask: Callable[..., str]

    def tiles(self, **changes: Any) -> Manifest:
        return self.tile_set(self.folder / "tiles", tiles=12, **changes)

    def without(self, split: str) -> Manifest:
        """A tile set whose `split` is empty."""
        whole = self.tiles(labels=True)
        rows = read_table(whole).filter(pa.array([name != split for name in read_table(whole)["split"].to_pylist()]))
        return write_manifest(str(self.folder / "less"), rows, tile_px=64, mpp=0.5, ingest="", storage=Storage())

    def model(self, mpp: float = 0.5) -> str:
        """An untrained segmenter of background and nucleus."""
        card = ModelCard(
            encoder="csat_tiny",
            decoder_channels=(16, 16, 8, 8, 8),
            classes=("background", "nucleus"),
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            tile_px=64,
            tile_mpp=mpp,
            size_px=64,
            tiles_digest="tiles",
            train_cases=(),
            histill="0",
        )
        folder = self.folder / "model"
        folder.mkdir()
        model_folder.save(str(folder), model_folder.build(card), card)
        return str(folder)

    def run(self, tiles: Manifest) -> dict[str, str]:
        """The overrides that every training run has."""
        sizes = {"data.batch_size": "4", "workers.cpus": "0.5", "optimizer.epochs": "1", "max_failures": "0"}
        return {"name": "run", "runs": str(self.folder / "runs"), "data.tiles": tiles.uri} | sizes


def mask_of_another_size(desk: Desk) -> Fault:
    Image.new("RGB", (64, 64)).save(desk.folder / "image.png")
    Image.new("L", (32, 64)).save(desk.folder / "mask.png")
    (desk.folder / "index.csv").write_text("image,mask,case\nimage.png,mask.png,1\n")
    keys = {
        "output": str(desk.folder / "tiles"),
        "images.index": str(desk.folder / "index.csv"),
        "images.mpp": "0.5",
        "images.columns": "{image: image, mask: mask, case: case}",
        "tile_px": "64",
    }
    said = f"the mask {desk.folder}/mask.png is 32 x 64 px and its image {desk.folder}/image.png is 64 x 64; "
    return Fault("jobs/ingest_tiles.py", keys, said)


def label_of_no_class(desk: Desk) -> Fault:
    tiles = desk.tiles(labels=True)
    keys = desk.run(tiles) | {"target": "classification", "classes": "[stroma, fat]"}
    said = f"tile case-4/8 of {tiles.uri} has the label 'tumour' (such tiles: 1); expected one of stroma, fat: "
    return Fault("jobs/finetune_student.py", keys, said)


def marked(desk: Desk, split: str) -> tuple[Manifest, str]:
    """Tiles of which one has a mask with a 7, and what is to be said of it."""
    tiles = desk.tiles()
    row = int(tiles.rows_of(split)[1])
    name = f"tile {desk.mark_mask(tiles, row, 7)} in shard {tiles.uri}/{read_table(tiles)['shard'][row]}"
    return tiles, f"the mask of {name} holds the value 7 and 0 to 1 was expected (background, nucleus); "


def mask_of_no_class_in_training(desk: Desk) -> Fault:
    """Only the workers see it."""
    tiles, said = marked(desk, "train")
    return Fault("jobs/train_teacher.py", desk.run(tiles) | {"network.encoder": "csat_tiny"}, said)


def mask_of_no_class_in_scoring(desk: Desk) -> Fault:
    tiles, said = marked(desk, "test")
    return Fault("jobs/score_model.py", {"model": desk.model(), "held_out.tiles": tiles.uri}, said)


def teacher_of_another_resolution(desk: Desk) -> Fault:
    teacher = desk.model(mpp=0.25)
    said = f"teacher {teacher} was trained on tiles of 0.25 um/px and the tile set has 0.5; "
    return Fault("jobs/pretrain_student.py", desk.run(desk.tiles()) | {"teacher.model": teacher}, said)


def no_tile_to_learn_from(desk: Desk) -> Fault:
    tiles = desk.without("train")
    keys = desk.run(tiles) | {"target": "classification", "fraction": "0.1"}
    return Fault("jobs/finetune_student.py", keys, f"split 'train' of {tiles.uri} is empty (it has test 2, val 2); ")


def no_tile_to_validate_on(desk: Desk) -> Fault:
    tiles = desk.without("val")
    said = f"split 'val' of {tiles.uri} is empty (it has test 2, train 8); "
    return Fault("jobs/train_teacher.py", desk.run(tiles), said)


def no_tile_held_out(desk: Desk) -> Fault:
    tiles = desk.without("test")
    said = f"split 'test' of {tiles.uri} is empty (it has train 8, val 2); "
    return Fault("jobs/score_model.py", {"model": desk.model(), "held_out.tiles": tiles.uri}, said)


@pytest.mark.parametrize(
    "make",
    [
        mask_of_another_size,
        label_of_no_class,
        mask_of_no_class_in_training,
        mask_of_no_class_in_scoring,
        teacher_of_another_resolution,
        no_tile_to_learn_from,
        no_tile_to_validate_on,
        no_tile_held_out,
    ],
)
def test_bad_input_is_refused_with_the_file_the_value_and_what_was_expected(
    ray_local: RayHead,
    tmp_path: Path,
    tile_set: Callable[..., Manifest],
    mark_mask: Callable[..., str],
    make: Callable[[Desk], Fault],
    refused_job: Callable[..., str],
) -> None:
    """On the Ray that the tests' process has joined."""
    fault = make(Desk(tmp_path, tile_set, mark_mask))
    assert fault.said in refused_job(fault.script, *[f"{key}={value}" for key, value in fault.keys.items()])
