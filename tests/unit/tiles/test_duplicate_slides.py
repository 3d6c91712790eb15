"""One slide under several names: as copies, links, DICOM files and regions."""

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from histill.config.common import Storage
from histill.errors import InputError
from histill.tiles.slide_records import read_slides
from histill.tiles.summary import find_warnings
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

TWO_SPLITS = {"split": {"pinned": {"train": ["x"], "test": ["y"]}}}
HALVES = "slide,case,left,top,right,bottom\na.tiff,x,0,0,1,1/2\na.tiff,y,0,1/2,1,1\n"


def link(kind: str, slide: Path, name: Path) -> None:
    {"copy": shutil.copy, "symbolic link": os.symlink, "hard link": os.link}[kind](slide, name)


@pytest.mark.parametrize("kind", ["copy", "symbolic link", "hard link"])
def test_a_slide_under_two_names_is_not_put_into_two_splits(
    tmp_path: Path, kind: str, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    one = Path(write_slide(tmp_path / "a.tiff"))
    link(kind, one, tmp_path / "b.tiff")
    index = "slide,case\na.tiff,x\nb.tiff,y\n"
    with pytest.raises(
        InputError, match=r"a\.tiff and .*b\.tiff are one slide and the cases 'x' \(train\) and 'y' \(te"
    ):
        ingest_slides(tmp_path, index, **TWO_SPLITS)
    assert not (tmp_path / "set").exists()  # refused before anything is cut
    report = ingest_slides(tmp_path, index)
    assert any("are one slide: its tiles are in the set more than once" in note for note in report.notes)
    assert any("16 tiles are equal byte for byte" in note for note in report.notes)
    again = ingest_slides(tmp_path, index)
    assert (again.reused, again.notes) == (True, report.notes)


def test_twins_that_are_known_only_when_they_are_fetched(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_slide: Callable[..., str],
    ingest_slides: Callable[..., Any],
) -> None:
    """As where opening a slide in object storage takes all of it."""
    monkeypatch.setattr("histill.tiles.ingest.peek_slide", lambda *_: nullcontext(None))
    shutil.copy(write_slide(tmp_path / "a.tiff"), tmp_path / "b.tiff")
    with pytest.raises(InputError, match="are one slide and the cases"):
        ingest_slides(tmp_path, "slide,case\na.tiff,x\nb.tiff,y\n", **TWO_SPLITS)
    assert (tmp_path / "set" / "parts").exists()
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_the_files_of_a_dicom_slide_are_one_slide(
    tmp_path: Path, write_dicom: Callable[[Path], list[str]], ingest_slides: Callable[..., Any]
) -> None:
    write_dicom(tmp_path / "d")
    index = "slide,case\nd/level-0.dcm,x\nd/level-2.dcm,y\n"
    with pytest.raises(InputError, match=r"level-0\.dcm and .*level-2\.dcm are one slide"):
        ingest_slides(tmp_path, index, **TWO_SPLITS)
    # Even where the smallest file lies alone and shows the slide at its own resolution only.
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "d" / "level-1.dcm", tmp_path / "alone" / "other.dcm")
    with pytest.raises(InputError, match="are one slide"):
        ingest_slides(tmp_path, "slide,case\nd/level-0.dcm,x\nalone/other.dcm,y\n", **TWO_SPLITS)
    report = ingest_slides(tmp_path, "slide,case\nd/level-2.dcm,x\n")
    record = read_slides(report.manifest, Storage())["level-2"]
    assert (record.width, record.height, record.mpp, record.tiles) == (512, 512, 0.5, 16)


def test_regions_of_one_slide_are_of_one_patient_unless_said(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    write_slide(tmp_path / "a.tiff")
    with pytest.raises(
        InputError, match=r"regions of the slide .*a\.tiff are the cases 'x' \(train\) and 'y' \(test\)"
    ):
        ingest_slides(tmp_path, HALVES, **TWO_SPLITS)
    report = ingest_slides(tmp_path, HALVES, slides={"split_within_slide": True}, **TWO_SPLITS)
    assert report.manifest.header.splits == {"test": 4, "train": 4}
    assert report.notes == (f"regions of the slide {tmp_path}/a.tiff count as 2 cases (x, y).",)
    shutil.rmtree(tmp_path / "set")
    one_split = ingest_slides(tmp_path, HALVES)
    assert one_split.notes == report.notes


def test_the_permission_changes_no_tile(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    write_slide(tmp_path / "a.tiff")
    ingest_slides(tmp_path, HALVES)
    assert ingest_slides(tmp_path, HALVES, slides={"split_within_slide": True}).reused


def test_other_paths_of_one_file_are_one_name(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    write_slide(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"a\.tiff is named twice with regions that overlap"):
        ingest_slides(tmp_path, "slide\na.tiff\n./a.tiff\n")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a.tiff", tmp_path / "b" / "a.tiff")
    with pytest.raises(InputError, match="are both named 'a'; rename one"):
        ingest_slides(tmp_path, "slide\na.tiff\nb/a.tiff\n")


def test_a_slide_replaced_under_its_path(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    path = Path(write_slide(tmp_path / "a.tiff"))
    index = "slide\na.tiff\n"
    first = ingest_slides(tmp_path, index)
    os.utime(path, (1, 1))  # copied without its time
    assert ingest_slides(tmp_path, index).reused
    write_slide(path, seed=1)
    with pytest.raises(InputError, match=r"a\.tiff has been replaced since .* name another output"):
        ingest_slides(tmp_path, index)
    write_slide(path, mpp=0.25)  # the same pixels
    with pytest.raises(InputError, match="has been replaced"):
        ingest_slides(tmp_path, index)
    path.unlink()  # slides may be moved away once they are cut
    assert ingest_slides(tmp_path, index).manifest.header == first.manifest.header


def test_more_slides_in_a_folder_of_dicom_files_replace_none(
    tmp_path: Path, write_dicom: Callable[[Path], list[str]], ingest_slides: Callable[..., Any]
) -> None:
    write_dicom(tmp_path / "d")
    index = "slide\nd/level-0.dcm\n"
    ingest_slides(tmp_path, index)
    (tmp_path / "d" / "another.dcm").write_bytes(b"of another slide")
    assert ingest_slides(tmp_path, index).reused
    (tmp_path / "d" / "level-0.dcm").unlink()
    (tmp_path / "d" / "level-2.dcm").rename(tmp_path / "d" / "level-0.dcm")  # now of 256 px
    with pytest.raises(InputError, match="has been replaced"):
        ingest_slides(tmp_path, index)


def test_a_slide_replaced_before_an_ingest_goes_on(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    for name in "ab":
        write_slide(tmp_path / f"{name}.tiff", seed=ord(name))
    index = "slide\na.tiff\nb.tiff\n"
    ingest_slides(tmp_path, index)
    (tmp_path / "set" / "manifest.json").unlink()  # as if it had been interrupted
    write_slide(tmp_path / "a.tiff", tissue=128)
    report = ingest_slides(tmp_path, index)
    assert (report.parts_done, report.parts_reused) == (1, 1)
    assert read_table(report.manifest)["slide"].to_pylist() == ["a"] * 4 + ["b"] * 8


def test_different_slides_with_equal_tiles_are_told_apart(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    """By OpenSlide's hash, a slide pasted into another is not a copy; by their content, its tiles are."""
    one = tifffile.imread(write_slide(tmp_path / "a.tiff"))
    both = np.concatenate([one, one[::-1]])
    how = {"tile": (256, 256), "photometric": "rgb", "resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "b.tiff", both, **how)
    report = ingest_slides(tmp_path, "slide,case\na.tiff,x\nb.tiff,y\n", **TWO_SPLITS)
    assert any("16 tiles are equal and lie in different splits" in said for said in find_warnings(report.manifest))
