"""Tile sets, slides and models to measure prediction with, the same for the same folder."""

from pathlib import Path

import torch

from benchmarks.cutting.slides import MPP, SlideSpec, make_slide
from benchmarks.loaders.tiles import make_tiles
from histill.artifacts import model_folder
from histill.artifacts.model_folder import ModelCard, build
from histill.config.common import Storage
from histill.engines.loaded_model import LoadedModel
from histill.testing.tile_sets import write_tile_set
from histill.tiles.shards import Tile

TILE_PX = 512
_PER_SHARD, _PER_GROUP = 256, 64
_FILES = 256


def make_tile_set(folder: Path, count: int) -> str:
    """A set of H&E-like JPEG tiles of 512 px."""
    uri = folder / f"tiles-{count}"
    if not (uri / "manifest.json").exists():
        files = make_tiles(folder / "jpeg", _FILES, 0)
        tiles = [
            Tile(f"tile-{number}", f"{number // 64}", "case", number % 8, number // 8, MPP, None,
                 files[number % _FILES].read_bytes(), None)
            for number in range(count)
        ]  # fmt: skip
        write_tile_set(
            str(uri), tiles, ["test"] * count, tile_px=TILE_PX, per_shard=_PER_SHARD, per_group=_PER_GROUP,
            storage=Storage(),
        )  # fmt: skip
    return str(uri)


def make_whole_slide(folder: Path, side: int) -> str:
    """A pyramidal slide of JPEG tiles of 256 px, of which 45 % are tissue."""
    return str(make_slide(folder / "slides", SlideSpec(side, coding="420")))


def make_model(folder: Path, size_px: int) -> str:
    """A CSAT classifier with random weights that sees tiles at `size_px`; its export is made, and kept on this node."""
    uri = folder / f"model-{size_px}"
    if not uri.exists():
        uri.mkdir(parents=True)
        card = ModelCard(
            kind="classification", encoder="csat", decoder_channels=(), classes=("stroma", "tumour"),
            mean=(0.7, 0.5, 0.7), std=(0.2, 0.2, 0.2), tile_px=TILE_PX, tile_mpp=MPP, size_px=size_px,
            tiles_digest="none", train_cases=(), histill="0",
        )  # fmt: skip
        torch.manual_seed(0)
        model_folder.save(str(uri), build(card), card)
    LoadedModel(str(uri), *model_folder.load(str(uri), Storage()), Storage()).make_onnx()
    return str(uri)
