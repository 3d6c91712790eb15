"""A slide without tiles is reported with the right reason, and every slide has a thumbnail."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from histill.api.tiles import ingest_tiles
from histill.cli.outcomes import show
from histill.config.ingest_tiles import IngestConfig
from histill.config.load import validate
from histill.errors import InputError
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

GREEN, BLUE = (0, 230, 90), (20, 60, 200)


def write_flat(path: Path, color: tuple[int, int, int], spot: tuple[int, int, int] | None = None) -> None:
    """A slide of one color with some gray noise, and optionally a spot of 200 x 200 px."""
    pixels = np.full((512, 512, 3), color, np.int64) + np.random.default_rng(0).integers(-3, 3, (512, 512, 1))
    if spot is not None:
        pixels[100:300, 100:300] = spot
    how = {"tile": (256, 256), "photometric": "rgb", "resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, np.clip(pixels, 0, 255).astype(np.uint8), **how)


def test_each_empty_slide_has_its_reason(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    write_slide(tmp_path / "good.tiff")
    write_slide(tmp_path / "low.tiff", seed=1, height=127)
    write_slide(tmp_path / "narrow.tiff", seed=2, width=100, tissue=100)
    write_slide(tmp_path / "sliver.tiff", seed=3, tissue=24)
    write_flat(tmp_path / "blank.tiff", (244, 244, 244))
    write_flat(tmp_path / "gray.tiff", (244, 244, 244), spot=(120, 120, 120))
    write_flat(tmp_path / "black.tiff", (5, 5, 5))
    write_flat(tmp_path / "ink.tiff", (40, 70, 190))
    names = ("good", "low", "narrow", "sliver", "blank", "gray", "black", "ink")
    index = "slide,left,top,right,bottom\n" + "".join(f"{name}.tiff,,,,\n" for name in names)
    report = ingest_slides(tmp_path, index + "bad.tiff,,,,\n", max_unreadable=1)
    said = {Path(reason.split()[1]).stem: reason for reason in report.skipped}
    assert set(said) == {*names[1:], "bad"}
    assert (
        "is 640 x 127 px of 0.5 um, smaller than a tile, which takes 128 x 128 of them (64 px of 1 um)" in said["low"]
    )
    assert "is 100 x 512 px" in said["narrow"]
    assert "has no tile of 64 px with 25% tissue, the most is 18.8%" in said["sliver"]  # 24 of 128 columns
    assert "shows no tissue: it is blank" in said["blank"]
    assert "shows no tissue: it is gray, and tissue is told from glass by its color" in said["gray"]
    assert "shows no tissue: it is black" in said["black"]
    assert "blue or green as ink is" in said["ink"]
    assert "does not exist" in said["bad"]
    assert all(reason.count("\n") == 0 for reason in report.skipped)
    again = ingest_slides(tmp_path, index + "bad.tiff,,,,\n", max_unreadable=1)
    assert (again.reused, again.skipped) == (True, report.skipped)


def test_a_region_that_holds_no_tile_or_no_tissue(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    write_slide(tmp_path / "a.tiff")
    index = "slide,left,top,right,bottom\na.tiff,0,0,0.4,1\na.tiff,0.5,0,1,1\na.tiff,0.4,0,0.5,1\n"
    glass, narrow = ingest_slides(tmp_path, index).skipped
    assert "(region 0.5, 0, 1, 1) shows no tissue: it is blank" in glass
    assert "(region 0.4, 0, 0.5, 1) is 64 x 512 px of 0.5 um, smaller than a tile" in narrow


def test_slides_with_another_resolution_than_the_one_stated_for_those_without_are_noted(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    write_slide(tmp_path / "a.tiff")
    write_slide(tmp_path / "b.tiff", seed=1, mpp=0.25)
    bare = {"resolution": None, "resolutionunit": None}
    write_slide(tmp_path / "c.tiff", seed=2, **bare)
    index = "slide\na.tiff\nb.tiff\nc.tiff\n"
    (note,) = ingest_slides(tmp_path, index, slides={"slide_mpp": 0.25}).notes
    assert note == (
        "slides.slide_mpp is 0.25 um/px, and was not used for slides that have a resolution of their own: "
        f"{tmp_path}/a.tiff (0.5 um/px)."
    )
    assert ingest_slides(tmp_path, index, slides={"slide_mpp": 0.25}).notes == (note,)


def test_an_unstated_resolution_is_asked_for_by_what_the_ingest_has(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    path = write_slide(tmp_path / "bare.tiff", resolution=None, resolutionunit=None)
    with pytest.raises(
        InputError, match=r"set slides\.slide_mpp, or the column mpp of the slide's row in the index\.$"
    ):
        ingest_slides(tmp_path, "slide\nbare.tiff\n")
    with pytest.raises(InputError, match=r"set slides\.slide_mpp\.$"):
        ingest_slides(tmp_path, "", slides={"index": None, "paths": [path]})


def test_a_set_without_a_tile_names_the_first_and_counts_the_others(
    tmp_path: Path, ingest_slides: Callable[..., Any]
) -> None:
    for number in range(7):
        write_flat(tmp_path / f"{number}.tiff", (100 + number,) * 3)
    with pytest.raises(InputError, match=r"gave no tile .*0\.tiff shows no tissue.*4\.tiff shows no.*\. And 2 more\.$"):
        ingest_slides(tmp_path, "slide\n" + "".join(f"{number}.tiff\n" for number in range(7)))


def test_a_gray_slide_can_be_cut_all_the_same(tmp_path: Path, ingest_slides: Callable[..., Any]) -> None:
    write_flat(tmp_path / "gray.tiff", (120, 120, 120))
    with pytest.raises(InputError, match=r"gave no tile .* it is gray.* set slides\.min_tissue=0 to cut it"):
        ingest_slides(tmp_path, "slide\ngray.tiff\n")
    assert (
        ingest_slides(tmp_path, "slide\ngray.tiff\n", slides={"min_tissue": 0.0}, output=f"{tmp_path}/other").skipped
        == ()
    )


def test_a_slide_damaged_half_way_gives_no_tile(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from openslide import OpenSlideError

    import histill.tiles.tiling

    reads = iter(range(100))
    read = histill.tiles.tiling.read_square

    def torn(*arguments: Any) -> np.ndarray:
        if "a.tiff" in repr(arguments[0]) and next(reads) == 3:
            raise OpenSlideError("premature end of file")
        return read(*arguments)

    write_slide(tmp_path / "a.tiff")
    write_slide(tmp_path / "b.tiff", seed=1)
    monkeypatch.setattr(histill.tiles.tiling, "read_square", torn)
    report = ingest_slides(tmp_path, "slide\na.tiff\nb.tiff\n", max_unreadable=1)
    assert set(read_table(report.manifest)["slide"].to_pylist()) == {"b"}
    assert report.skipped == (f"slide {tmp_path}/a.tiff is damaged (premature end of file); replace it.",)


def test_the_picture_shows_tissue_and_tiles_where_they_are(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    write_slide(tmp_path / "a.tiff")
    ingest_slides(tmp_path, "slide,left,top,right,bottom\na.tiff,0,0,1,0.5\n")
    (path,) = (tmp_path / "set" / "thumbnails").iterdir()
    picture = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB")).astype(int)
    height, width = picture.shape[:2]
    assert max(height, width) <= 1000
    assert width / height == pytest.approx(640 / 512, rel=0.02)
    scale = width / 640

    def near(color: tuple[int, int, int]) -> np.ndarray:
        rows, columns = np.nonzero(np.abs(picture - color).sum(axis=-1) < 60)
        return np.stack([columns, rows], -1) / scale

    tiles, tissue = near(BLUE), near(GREEN)
    # Tiles of 128 px are drawn in the upper half of the tissue, which is 256 px wide.
    assert tiles.min(axis=0) == pytest.approx((0, 0), abs=3)
    assert tiles.max(axis=0) == pytest.approx((256, 256), abs=6)  # the region's own line lies on the last
    assert np.abs(tiles % 128 - 64).max(axis=-1).min() > 64 - 4  # every line is near a multiple of 128
    assert tissue[:, 0] == pytest.approx(np.full(len(tissue), 256), abs=16)
    assert np.abs(picture[height // 4, width - 20] - 244).max() < 12  # glass


def test_the_jobs_table_and_line_name_every_skipped_slide(
    tmp_path: Path,
    write_slide: Callable[..., str],
    ingest_slides: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_slide(tmp_path / "good.tiff")
    write_flat(tmp_path / "gray.tiff", (120, 120, 120))
    (tmp_path / "slides.csv").write_text("slide\ngood.tiff\ngray.tiff\n")
    slides = {"index": str(tmp_path / "slides.csv"), "mpp": 1.0}
    data = {"output": str(tmp_path / "set"), "slides": slides, "tile_px": 64, "workers": {"count": 0}}
    config = validate(IngestConfig, data, "test")
    for reused in (False, True):
        outcome = show("ingest_tiles", ingest_tiles(config), config).values
        assert outcome["reused"] is reused
        assert outcome["skipped"] == 1
        assert "gray.tiff shows no tissue: it is gray" in outcome["skipped_reasons"][0]
        table = capsys.readouterr().err
        assert f"skipped: {outcome['skipped_reasons'][0]}" in table
        assert ("skipped inputs are not tried again, so name another output" in table) is reused
        rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line.startswith(("good", "gray"))}
        assert rows == {"good": ["good", "8", "40%", "0.5"], "gray": ["gray", "0", "0%", "0.5"]}
