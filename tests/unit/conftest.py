"""Small slides, an ingest of them in the test's own process, and models whose exports all modules share."""

import os
import struct
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


def dicom_instance(pixels: np.ndarray, mpp: float, number: int, series: str = "1.2.3") -> bytes:
    """One level of a whole slide image as a DICOM file (PS3.10, explicit little endian), one frame of uint8 RGB.

    The attributes are those of PS3.3 A.32.8 that OpenSlide asks for.
    """
    height, width = pixels.shape[:2]
    kind, name = b"1.2.840.10008.5.1.4.1.1.77.1.6", f"{series}.{number}".encode()

    def element(tag: int, representation: bytes, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2) if representation in (b"UI", b"OB") else b" " * (len(value) % 2)
        head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + representation
        long = representation in (b"OB", b"SQ")
        return head + (struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))) + value

    def sequence(tag: int, *elements: bytes) -> bytes:
        item = b"".join(elements)
        return element(tag, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item)

    def short(tag: int, value: int) -> bytes:
        return element(tag, b"US", struct.pack("<H", value))

    def long(tag: int, value: int) -> bytes:
        return element(tag, b"UL", struct.pack("<I", value))

    meta = element(0x00020002, b"UI", kind) + element(0x00020003, b"UI", name)
    meta += element(0x00020010, b"UI", b"1.2.840.10008.1.2.1")
    spacing = b"\\".join([f"{mpp / 1000:.6f}".encode()] * 2)
    return b"".join(
        [
            bytes(128) + b"DICM" + long(0x00020000, len(meta)) + meta,
            element(0x00080008, b"CS", b"DERIVED\\PRIMARY\\VOLUME\\" + (b"RESAMPLED" if number else b"NONE")),
            element(0x00080016, b"UI", kind) + element(0x00080018, b"UI", name) + element(0x00080060, b"CS", b"SM"),
            element(0x0020000E, b"UI", series.encode()) + element(0x00200052, b"UI", f"{series}.9".encode()),
            element(0x00209311, b"CS", b"TILED_FULL"),
            short(0x00280002, 3) + element(0x00280004, b"CS", b"RGB") + short(0x00280006, 0),
            element(0x00280008, b"IS", b"1") + short(0x00280010, height) + short(0x00280011, width),
            short(0x00280100, 8) + short(0x00280101, 8) + short(0x00280102, 7) + short(0x00280103, 0),
            long(0x00480006, width) + long(0x00480007, height),
            sequence(0x00480105, element(0x00480106, b"SH", b"1")),
            long(0x00480302, 1) + long(0x00480303, 1),
            sequence(0x52009229, sequence(0x00289110, element(0x00280030, b"DS", spacing))),
            element(0x7FE00010, b"OB", pixels.tobytes()),
        ]
    )


@pytest.fixture
def write_dicom() -> Callable[[Path], list[str]]:
    """Writes a slide of 512 x 512 px at 0.5 um/px as three DICOM files, one for each level, into a folder."""

    def write(folder: Path) -> list[str]:
        folder.mkdir()
        pixels = eosin(512, 512, 7)
        paths = [folder / f"level-{number}.dcm" for number in range(3)]
        for number, path in enumerate(paths):
            level = np.ascontiguousarray(pixels[:: 2**number, :: 2**number])
            path.write_bytes(dicom_instance(level, 0.5 * 2**number, number))
        return [str(path) for path in paths]

    return write


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
