"""Small slides, an ingest of them in the test's own process, and models whose exports all modules share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from histill.artifacts.model_folder import ModelCard, build, save
from histill.config.common import ShardCache, Storage
from histill.config.ingest_tiles import IngestConfig
from histill.config.load import validate
from histill.tiles.ingest import IngestReport, ingest
from testbed.dicom_slide import write_dicom_slide

SlideWriter = Callable[..., str]
SlideIngest = Callable[..., IngestReport]

TISSUE, GLASS = (200, 110, 170), 244


def eosin(height: int, width: int, seed: int) -> np.ndarray:
    """Noisy eosin, uint8 [height, width, 3]."""
    noise = np.random.default_rng(seed).normal(0, 8, (height, width, 3))
    return np.clip(np.array(TISSUE) + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def write_slide() -> SlideWriter:
    """Writes a tiled TIFF of one level: eosin in the left `tissue` columns, glass in the rest; its path."""

    def write(
        path: Path,
        seed: int = 0,
        *,
        width: int = 640,
        height: int = 512,
        mpp: float = 0.5,
        tissue: int = 256,
        **how: Any,
    ) -> str:
        pixels = np.full((height, width, 3), GLASS, np.uint8)
        pixels[:, :tissue] = eosin(height, min(tissue, width), seed)
        resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(path, pixels, **{"tile": (256, 256), "photometric": "rgb", **resolution, **how})
        return str(path)

    return write


@pytest.fixture
def ingest_slides() -> SlideIngest:
    """Ingests an index of slides, given as text, into `set` beside it: tiles of 64 px at 1 um/px, all for training."""

    def run(folder: Path, index: str, **changes: Any) -> IngestReport:
        (folder / "slides.csv").write_text(index, encoding="utf-8")
        slides = {"index": str(folder / "slides.csv"), "mpp": 1.0, **changes.pop("slides", {})}
        split = {"train": 1.0, "val": 0.0, "test": 0.0}
        data = {"output": str(folder / "set"), "slides": slides, "tile_px": 64, "split": split, "workers": {"count": 0}}
        return ingest(validate(IngestConfig, data | changes, "test"))

    return run


@pytest.fixture
def write_dicom() -> Callable[[Path], list[str]]:
    """Writes a slide of 512 x 512 px at 0.5 um/px as three DICOM files, one for each level, into a folder."""
    return lambda folder: write_dicom_slide(folder, eosin(512, 512, 7))


@pytest.fixture(scope="session")
def write_small_model() -> Callable[[str, Path], str]:
    """Writes a ResNet of a kind for tiles of 64 px that it sees at 32 px, into a folder; its path.

    Each has the same digest every time, so that with `node` one export of it, which takes seconds, serves all modules.
    """

    def write(kind: str, folder: Path) -> str:
        card = ModelCard(
            kind=kind, encoder="resnet10t", decoder_channels=(16, 16, 8, 8, 8) if kind == "segmentation" else (),
            classes=() if kind == "encoder" else ("background", "nucleus"), mean=(0.5,) * 3, std=(0.2,) * 3, tile_px=64,
            tile_mpp=0.5, size_px=32, tiles_digest="tiles", train_cases=(), histill="0",
        )  # fmt: skip
        torch.manual_seed(0)
        save(str(folder), build(card), card)
        return str(folder)

    return write


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """The disk of a node that keeps exports; one for all processes of this run of pytest."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return Storage(cache=ShardCache(folder=str(folder / "node"), max_gb=1))
