"""Slides on a real S3 server: how many of their bytes are read, counted by a proxy in front of it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from openslide import OpenSlide

import histill.tiles.slide_copies as slide_copies
from histill.config.common import Storage
from histill.config.ingest_tiles import IngestConfig
from histill.config.load import validate
from histill.local.s3 import REGION, S3Server
from histill.storage.control import list_files, write_bytes
from histill.tiles.ingest import ingest
from histill.tiles.slide_files import open_slide, peek_slide
from histill.tiles.slide_identity import fingerprint_source
from histill.tiles.whole_table import read_table
from testbed.dicom_slide import write_dicom_slide
from testbed.fault_proxy import FaultProxy, Faults, fault_proxy
from testbed.jpeg_tiff import JpegLevel, write_jpeg_tiff

pytestmark = pytest.mark.cluster

TILE, TILES = 256, 32  # pixels of a tile, and tiles along a side of level 0


def noisy_tiles(rows: int) -> Iterator[bytes]:
    """JPEGs of `rows` x `rows` tiles of noisy tissue, which are as large as a detailed slide's."""
    few = []
    for seed in range(7):
        noise = np.random.default_rng(seed).normal(0, 30, (TILE, TILE, 3)) + np.array([190, 100, 160])
        few.append(simplejpeg.encode_jpeg(noise.clip(0, 255).astype(np.uint8), 85, colorsubsampling="444"))
    return (few[(row * 3 + column) % 7] for row in range(rows) for column in range(rows))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 8192 x 8192 px, with levels of 1/4 and 1/16."""
    path = tmp_path_factory.mktemp("slide") / "large.tiff"
    sides = [(TILES // factor, 0.5 * factor) for factor in (1, 4, 16)]
    return write_jpeg_tiff(path, [JpegLevel(n * TILE, n * TILE, TILE, noisy_tiles(n), mpp) for n, mpp in sides])


@pytest.fixture
def proxy(s3: S3Server, slide: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """In front of the server, which has the slide; one of its size is not too small for ranges."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slide_copies, "SMALL", 2**20)
    write_bytes("s3://tests/from-storage/large.tiff", slide.read_bytes(), Storage(endpoint=s3.endpoint, region=REGION))
    with fault_proxy(s3.endpoint, Faults(rate=0.0)) as found:
        yield found


def storage(proxy: FaultProxy, **changes: Any) -> Storage:
    return Storage(endpoint=proxy.endpoint, region=REGION, retry_base_s=0.05, request_timeout_s=2.0, **changes)


URI = "s3://tests/from-storage/large.tiff"


def test_a_region_costs_a_small_part_of_a_slide(proxy: FaultProxy, slide: Path) -> None:
    with OpenSlide(slide) as whole, open_slide(URI, storage(proxy)) as opened:
        expected = np.asarray(whole.read_region((3100, 5050), 0, (512, 512)))[..., :3]
        np.testing.assert_array_equal(opened.read_rgb(3100, 5050, 0, 512, 512), expected)
        assert opened.properties["openslide.quickhash-1"] == whole.properties["openslide.quickhash-1"]
    assert 0 < proxy.counts["bytes"] <= 0.04 * slide.stat().st_size


def test_a_look_costs_less(proxy: FaultProxy, slide: Path) -> None:
    with peek_slide(URI, storage(proxy)) as opened:
        assert opened is not None
        assert float(opened.properties["openslide.mpp-x"]) == 0.5
    assert 0 < proxy.counts["bytes"] <= 0.025 * slide.stat().st_size
    assert proxy.counts["requests"] < 30


def test_a_tenth_of_a_slide_is_cut_from_a_quarter_of_its_bytes(proxy: FaultProxy, slide: Path, tmp_path: Path) -> None:
    def cut(uri: str, name: str) -> list[str]:
        (tmp_path / f"{name}.csv").write_text(f"slide,left,top,right,bottom\n{uri},0.3,0.4,0.7,0.65\n")
        data = {
            "output": str(tmp_path / name), "slides": {"index": str(tmp_path / f"{name}.csv"), "mpp": 0.5},
            "tile_px": 256, "split": {"train": 1.0, "val": 0.0, "test": 0.0}, "workers": {"count": 0},
            "storage": storage(proxy).model_dump(),
        }  # fmt: skip
        return read_table(ingest(validate(IngestConfig, data, "test")).manifest)["content"].to_pylist()

    found = cut(URI, "remote")
    assert 0.1 * slide.stat().st_size < proxy.counts["bytes"] <= 0.25 * slide.stat().st_size
    assert len(found) > 80
    assert found == cut(str(slide), "local")


def test_broken_replies_do_not_change_pixels(proxy: FaultProxy, slide: Path) -> None:
    proxy.rate, proxy.stall_s = 0.2, 0.2
    with OpenSlide(slide) as whole, open_slide(URI, storage(proxy, attempts=8)) as opened:
        for corner in ((0, 0), (3000, 100), (5000, 7000)):
            expected = np.asarray(whole.read_region(corner, 0, (600, 600)))[..., :3]
            np.testing.assert_array_equal(opened.read_rgb(*corner, 0, 600, 600), expected)
    assert sum(proxy.counts[kind] for kind in ("503", "reset", "stall", "short")) > 3


def test_a_dicom_slide_on_a_server(proxy: FaultProxy, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3)).astype(np.uint8)
    paths, folder = write_dicom_slide(tmp_path / "dicom", pixels), "s3://tests/from-storage/dicom"
    for path in paths:
        write_bytes(f"{folder}/{os.path.basename(path)}", Path(path).read_bytes(), storage(proxy))
    write_bytes(f"{folder}/empty.dcm", b"", storage(proxy))
    assert len(list_files(folder, storage(proxy))) == 4
    uri = f"{folder}/level-1.dcm"
    with OpenSlide(paths[0]) as whole, open_slide(uri, storage(proxy)) as opened:
        assert opened.level_dimensions == whole.level_dimensions
        assert opened.read_region((9, 9), 1, (99, 99)).tobytes() == whole.read_region((9, 9), 1, (99, 99)).tobytes()
    before = fingerprint_source(uri, storage(proxy))
    write_bytes(f"{folder}/level-2.dcm", Path(paths[2]).read_bytes() + b"\0\0", storage(proxy))
    assert fingerprint_source(uri, storage(proxy)) != before
