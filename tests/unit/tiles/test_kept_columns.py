"""Columns of an index that a tile set keeps: through shards, manifest and copies, and what cannot be kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import histill.tiles.ingest
from histill.config.common import Storage
from histill.config.ingest_tiles import _TAKEN, IngestConfig
from histill.config.load import validate
from histill.errors import InputError
from histill.tiles import manifest_file
from histill.tiles.claim import claim_of
from histill.tiles.ingest import ingest
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import read_manifest
from histill.tiles.schema import MANIFEST, SHARD
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

ROWS = [("a", "north", "X 1"), ("b", "north", ""), ("c", "süd", "Y"), ("d", "north", "X 1"), ("e", "süd", "Y")]


@pytest.fixture(autouse=True)
def _serial(in_process: Callable[..., None]) -> None:
    in_process(histill.tiles.ingest)


def write_images(folder: Path, header: str = "image,case,center,scanner") -> None:
    for name, _, _ in ROWS:
        Image.fromarray(np.random.default_rng(ord(name)).integers(0, 255, (64, 64, 3), np.uint8)).save(
            folder / f"{name}.png"
        )
    lines = [header, *(f"{name}.png,{name},{center},{scanner}" for name, center, scanner in ROWS)]
    (folder / "index.csv").write_text("\n".join(lines))


def configure(folder: Path, **keys: Any) -> IngestConfig:
    data = {"output": str(folder / "set"), "images": {"index": str(folder / "index.csv"), "mpp": 0.5}, "tile_px": 64}
    return validate(IngestConfig, data | {"rows_per_shard": 2, "rows_per_group": 2} | keys, "test")


def kept(manifest: Manifest) -> list[tuple[str, str | None, str | None]]:
    return [(row["slide"], row["center"], row["scanner"]) for row in read_table(manifest).to_pylist()]


def test_values_are_kept_with_every_image_and_read_back(tmp_path: Path) -> None:
    write_images(tmp_path)
    made = ingest(configure(tmp_path, keep_columns=["center", "scanner"]))
    expected = [(f"{name}.png", center, scanner or None) for name, center, scanner in ROWS]
    assert kept(made.manifest) == kept(read_manifest(str(tmp_path / "set"), Storage())) == expected
    assert made.manifest.header.columns == ("center", "scanner")
    assert dict(made.manifest.count("center")) == {("north",): 3, ("süd",): 2}
    assert made.manifest.tile(2)["scanner"] == "Y"
    assert not [note for note in made.notes if "not used" in note]
    again = ingest(configure(tmp_path, keep_columns=["center", "scanner"]))
    assert (again.reused, kept(again.manifest)) == (True, expected)


def test_a_mapped_copy_has_the_same_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path)
    held = ingest(configure(tmp_path, keep_columns=["scanner", "center"])).manifest
    monkeypatch.setattr(manifest_file, "MAPPED_TILES", 1)
    mapped = read_manifest(held.uri, Storage())
    assert kept(mapped) == kept(held)
    assert set(mapped.rows.kept) == {"center", "scanner"}


def test_what_is_kept_changes_the_set_and_nothing_kept_does_not(tmp_path: Path) -> None:
    write_images(tmp_path)
    plain, with_center = (claim_of(configure(tmp_path, keep_columns=keep)) for keep in ([], ["center"]))
    assert "keep_columns" not in plain.record  # as in sets that were begun before there was the key
    assert plain.digest != with_center.digest
    one, other = (
        ingest(configure(tmp_path, output=str(tmp_path / name), keep_columns=keep)).manifest.header
        for name, keep in (("one", []), ("other", ["center"]))
    )
    assert one.columns == ()
    assert one.digest != other.digest


def test_tiles_of_a_slide_keep_its_values(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(60, 200, (256, 256, 3), np.uint8)
    for name in ("s", "t"):
        tifffile.imwrite(
            tmp_path / f"{name}.tif", pixels, tile=(64, 64), photometric="rgb", resolution=(2e4, 2e4),
            resolutionunit="CENTIMETER",
        )  # fmt: skip
        pixels = pixels[::-1]
    (tmp_path / "slides.csv").write_text("slide,case,center,organ\ns.tif,1,north,colon\nt.tif,2,,lung\n")
    slides = {"index": str(tmp_path / "slides.csv"), "mpp": 0.5, "min_tissue": 0}
    made = ingest(configure(tmp_path, images=None, slides=slides, keep_columns=["center"], tile_px=64)).manifest
    assert dict(made.count("slide", "center")) == {("s", "north"): 16, ("t", None): 16}
    assert [note for note in made.header.notes if "not used" in note] == [
        "columns of the index that are not used: organ."
    ]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"keep_columns": ["organ"]}, "has no column 'organ'; it has image, case, center, scanner: correct"),
        ({"keep_columns": ["case"]}, "the tile set has a column of this name"),
        ({"keep_columns": ["a/b"]}, "letters, digits, spaces"),
        ({"keep_columns": ["center", "center"]}, "names a column twice"),
        ({"images": None, "slides": {"paths": ["a.tif"], "mpp": 1}, "keep_columns": ["organ"]}, "are of an index"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_named(tmp_path: Path, keys: dict[str, Any], named: str) -> None:
    write_images(tmp_path)
    with pytest.raises(InputError, match=named):
        ingest(configure(tmp_path, **keys))


def test_a_column_that_the_set_has_by_another_name_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, header="image,patient,center,scanner")
    images = {"index": str(tmp_path / "index.csv"), "mpp": 0.5, "columns": {"case": "patient"}}
    with pytest.raises(InputError, match=r"has the column 'patient' of the index .* anyway"):
        ingest(configure(tmp_path, images=images, keep_columns=["patient"]))


def test_names_that_are_taken_are_those_of_the_files() -> None:
    assert set(MANIFEST.names) | set(SHARD.names) == _TAKEN
