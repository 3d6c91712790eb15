"""The record of every slide: what ingest stores about a slide besides its tiles, and when it is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from histill.config.common import Storage
from histill.errors import InputError
from histill.tiles.manifest_file import write_manifest
from histill.tiles.slide_identity import fingerprint_source
from histill.tiles.slide_records import RECORDS_NAME, read_slides
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

STORAGE = Storage()


def test_every_slide_has_a_record(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    source = write_slide(tmp_path / "a.tiff")
    write_slide(tmp_path / "b.tiff", seed=1, mpp=0.25)
    text = "slide,case,left,top,right,bottom\na.tiff,x,0,0,1,0.5\nb.tiff,y,,,,\na.tiff,z,0,0.5,1,1\n"
    report = ingest_slides(tmp_path, text, slides={"split_within_slide": True})
    records = read_slides(report.manifest, STORAGE)
    assert list(records) == ["a", "b"]
    record = records["a"]
    assert (record.name, record.cases, record.source) == ("a", ("x", "z"), source)
    assert (record.width, record.height, record.origin) == (640, 512, (0, 0))
    assert record.mpp == pytest.approx(0.5)
    assert record.tile_side == pytest.approx(128)
    assert record.tiles == 8
    assert record.tissue == pytest.approx(256 / 640, abs=0.02)
    assert records["b"].tile_side == pytest.approx(256)
    assert records["b"].tiles == 2
    assert record.identity != records["b"].identity
    for name, each in records.items():
        assert each.tiles == read_table(report.manifest)["slide"].to_pylist().count(name)


def test_a_file_that_is_not_the_headers_is_refused(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    write_slide(tmp_path / "a.tiff")
    manifest = ingest_slides(tmp_path, "slide\na.tiff\n").manifest
    path = tmp_path / "set" / RECORDS_NAME
    records = json.loads(path.read_text())
    path.write_text(json.dumps([records[0] | {"tile_side": 64.0}]))
    with pytest.raises(InputError, match=r"slides\.json does not match the digest"):
        read_slides(manifest, STORAGE)
    path.unlink()
    with pytest.raises(InputError, match=r"slides\.json is missing"):
        read_slides(manifest, STORAGE)


def test_a_set_without_records_says_so(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    write_slide(tmp_path / "a.tiff")
    table = read_table(ingest_slides(tmp_path, "slide\na.tiff\n").manifest)
    older = write_manifest(str(tmp_path / "old"), table, tile_px=64, mpp=1.0, ingest="i", storage=STORAGE)
    with pytest.raises(InputError, match=r"has no record of its slides .* into another folder"):
        read_slides(older, STORAGE)


def test_a_fingerprint_changes_with_the_file_and_with_those_beside_it(tmp_path: Path) -> None:
    for name in ("a.svs", "b.mrxs", "b/Slidedat.ini", "c/1.dcm", "c/2.dcm"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("one")
        os.utime(path, ns=(1, 1))
    for slide, changed in (("a.svs", "a.svs"), ("b.mrxs", "b/Slidedat.ini"), ("c/1.dcm", "c/2.dcm")):
        before = fingerprint_source(str(tmp_path / slide), STORAGE)
        assert fingerprint_source(str(tmp_path / slide), STORAGE) == before
        os.utime(tmp_path / changed, ns=(1, 2))
        later = fingerprint_source(str(tmp_path / slide), STORAGE)
        (tmp_path / changed).write_text("others")
        os.utime(tmp_path / changed, ns=(1, 2))
        assert len({before, later, fingerprint_source(str(tmp_path / slide), STORAGE)}) == 3
    with pytest.raises(FileNotFoundError):
        fingerprint_source(str(tmp_path / "none.svs"), STORAGE)
