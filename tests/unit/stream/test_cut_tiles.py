"""Tiles cut from their slides when they are read: which slide is open, and when it is closed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import histill.tiles.ingest
from histill.config.common import Storage
from histill.config.ingest_tiles import IngestConfig, Parts, SlideSource
from histill.config.load import validate
from histill.errors import InputError
from histill.stream import cut_tiles
from histill.stream.cut_tiles import TileCutter
from histill.stream.read import ReadRequest, TileSource
from histill.tiles.ingest import ingest
from histill.tiles.manifest_file import read_manifest

pytestmark = pytest.mark.unit

STORAGE = Storage()


def write_slide(path: Path, side: int = 128) -> str:
    pixels = np.random.default_rng(side).integers(90, 200, (side, side, 3)).astype(np.uint8)
    how: dict[str, Any] = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", **how)
    return str(path)


@pytest.fixture
def cut(tmp_path: Path, in_process: Callable[..., None]) -> Callable[[str], list[bytes]]:
    """`cut(slide)`: the tiles of the slide a or b, which have four each, by one cutter."""
    in_process(histill.tiles.ingest)
    slides = [write_slide(tmp_path / f"{name}.tif") for name in "ab"]
    source = validate(SlideSource, {"paths": slides, "mpp": 0.5, "min_tissue": 0.0}, "test").for_prediction(cut=False)
    ingest(IngestConfig(output=str(tmp_path / "set"), tile_px=64, slides=source, workers=Parts(count=0)))
    manifest = read_manifest(str(tmp_path / "set"), STORAGE, cut=False)
    cutter = TileCutter(manifest, source, STORAGE, threads=2)

    def of(slide: str) -> list[bytes]:
        places = manifest.read(["slide", "shard"], np.arange(8)).to_pydict()
        shard = places["shard"][places["slide"].index(slide)]
        read = ReadRequest(shard, 0, np.arange(4), np.arange(4))
        (table,) = cutter(TileSource(manifest.uri, manifest.header.digest, STORAGE), [read])
        found: list[bytes] = table["image"].to_pylist()
        return found

    return of


def test_a_slide_that_cannot_be_opened_leaves_the_others_readable(
    cut: Callable[[str], list[bytes]], tmp_path: Path
) -> None:
    tiles = cut("a")
    assert len(tiles) == 4
    write_slide(tmp_path / "b.tif", 256)
    with pytest.raises(InputError, match=r"b\.tif was replaced"):
        cut("b")
    assert cut("a") == tiles


def test_a_slide_is_closed_after_what_reads_it_has_ended(
    cut: Callable[[str], list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def spoilt(slide: Any, *_: Any) -> Iterator[Any]:
        try:
            yield None  # which has no image
        finally:
            read.append(slide.read_region((0, 0), 0, (8, 8)).size[0])

    monkeypatch.setattr(cut_tiles, "cut_squares", spoilt)
    with pytest.raises(AttributeError):
        cut("a")
    assert read == [8]
