"""Slides of several files in object storage: which files are fetched, and that what they show is the slide."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from openslide import OpenSlide, OpenSlideError
from PIL import Image

import histill.tiles.tiled_slide
from histill.config.common import Storage
from histill.storage import scratch
from histill.tiles.slide_files import open_slide
from histill.tiles.slide_identity import fingerprint_source
from histill.tiles.slide_parts import list_alike, list_companions, of_same_series
from histill.tiles.slide_records import SlideRecord, find_replaced
from histill.tiles.sources import Unreadable
from testbed.folder_bucket import FolderBucket, folder_bucket

pytestmark = pytest.mark.unit

STORAGE = Storage()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FolderBucket]:
    """A folder whose subfolder `b` is the bucket b, beside a temporary folder of the test."""
    for name in ("b", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    scratch._folder_of.cache_clear()
    with folder_bucket(tmp_path) as found:
        yield found
    scratch._folder_of.cache_clear()


def left_behind(bucket: FolderBucket) -> list[str]:
    """The files in the temporary folder, but for the locks of its owners."""
    return [path.name for path in (bucket.root / "tmp").rglob("*") if path.is_file() and path.name != ".lock"]


def files_of_scratch(path: str) -> list[str]:
    folder = Path(path).parent
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


@pytest.mark.parametrize("ending", [".dcm", ".DCM", ""])
@pytest.mark.parametrize("named", [0, 2])
def test_dicom_is_fetched_with_its_levels(
    bucket: FolderBucket, write_dicom: Callable[[Path], list[str]], ending: str, named: int
) -> None:
    paths = [Path(path).rename(Path(path).with_suffix(ending)) for path in write_dicom(bucket.root / "b" / "d")]
    (bucket.root / "b" / "d" / "notes.txt").write_text("not of the slide")
    with (
        open_slide(f"s3://b/d/{paths[named].name}", STORAGE) as slide,
        OpenSlide(paths[named]) as there,
    ):
        assert slide.level_dimensions == there.level_dimensions == ((512, 512), (256, 256), (128, 128))
        assert slide.properties["openslide.quickhash-1"] == there.properties["openslide.quickhash-1"]
        for level in range(3):
            region = slide.read_region((128, 256), level, (64, 64))
            assert region.tobytes() == there.read_region((128, 256), level, (64, 64)).tobytes()
        assert sorted(left_behind(bucket)) == sorted(path.name for path in paths)
    assert left_behind(bucket) == []


def test_of_a_folder_of_many_dicom_slides_one_is_fetched(
    bucket: FolderBucket, write_dicom: Callable[[Path], list[str]]
) -> None:
    own = write_dicom(bucket.root / "b" / "d")
    for path in write_dicom(bucket.root / "other"):
        data = Path(path).read_bytes()
        assert data.count(b"1.2.3") > 1
        (bucket.root / "b" / "d" / f"other-{Path(path).name}").write_bytes(data.replace(b"1.2.3", b"4.5.6"))
    (bucket.root / "b" / "d" / "unknown.dcm").write_bytes(bytes(300))
    uri = "s3://b/d/level-0.dcm"
    (bucket.root / "b" / "d" / "empty.dcm").touch()
    files = list_alike(uri, STORAGE)
    assert len(files) == 7
    assert of_same_series(uri, files, STORAGE) == ["level-1.dcm", "level-2.dcm", "unknown.dcm"]
    with open_slide(uri, STORAGE) as slide:
        assert slide.level_count == 3
    assert {Path(path).name for path in bucket.whole} == {*(Path(path).name for path in own), "unknown.dcm"}


def test_a_series_that_a_file_refers_to_does_not_leave_it_out(
    bucket: FolderBucket, write_dicom: Callable[[Path], list[str]]
) -> None:
    """Another series may be named before the file's own, as one that belongs to the same study."""
    paths = [Path(path) for path in write_dicom(bucket.root / "b" / "d")]
    data = paths[1].read_bytes()
    own = data.index(bytes.fromhex("20000e00") + b"UI")
    paths[1].write_bytes(data[:own] + bytes.fromhex("20000e00") + b"UI\x06\x007.8.9\0" + data[own:])
    uri = "s3://b/d/level-0.dcm"
    assert of_same_series(uri, list_alike(uri, STORAGE), STORAGE) == [path.name for path in paths[1:]]


def test_mirax_is_fetched_with_its_folder(bucket: FolderBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bucket.root / "b" / "x" / "m"
    folder.mkdir(parents=True)
    for name in ("Slidedat.ini", "Index.dat", "Data0000.dat"):
        (folder / name).write_bytes(name.encode() * 50)
    (folder.parent / "m.mrxs").write_bytes(b"\xff\xd8\xff\xe0")
    (folder.parent / "n.mrxs").write_bytes(b"\xff\xd8\xff\xe0")
    seen = []

    def spy(path: str, tiles: None = None) -> None:
        seen.extend(files_of_scratch(path))
        assert (Path(path).parent / "m" / "Index.dat").read_bytes() == b"Index.dat" * 50
        raise OpenSlideError("no pixels")

    monkeypatch.setattr(histill.tiles.tiled_slide, "TiledSlide", spy)
    with pytest.raises(Unreadable, match="no pixels"), open_slide("s3://b/x/m.mrxs", STORAGE):
        pass
    assert seen == ["m.mrxs", "m/Data0000.dat", "m/Index.dat", "m/Slidedat.ini"]
    assert left_behind(bucket) == []
    with (
        pytest.raises(Unreadable, match=r"s3://b/x/n\.mrxs lacks its folder n/ \(MIRAX\)"),
        open_slide("s3://b/x/n.mrxs", STORAGE),
    ):
        pass


def write_vms(folder: Path) -> Path:
    """A slide of two JPEGs and a map, as Hamamatsu's VMS names them."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (256, 256, 3)).astype(np.uint8)
    for name in ("image-a.jpg", "image-b.jpg", "map.jpg"):
        Image.fromarray(pixels).save(folder / name, restart_marker_blocks=4, subsampling=0)
    (folder / "other.jpg").write_bytes(b"of another slide")
    text = """[Virtual Microscope Specimen]
NoLayers=1
NoJpegColumns=2
NoJpegRows=1
ImageFile=image-a.jpg
ImageFile(1,0)=image-b.jpg
MapFile=map.jpg
OptimisationFile=
SourceLens=20
PhysicalWidth=256000
PhysicalHeight=128000
"""
    (folder / "slide.vms").write_text(text)
    return folder / "slide.vms"


def test_vms_is_fetched_with_what_it_names(bucket: FolderBucket) -> None:
    path = write_vms(bucket.root / "b" / "v")
    with open_slide("s3://b/v/slide.vms", STORAGE) as slide, OpenSlide(path) as there:
        assert slide.dimensions == there.dimensions == (512, 256)
        region = slide.read_region((200, 100), 0, (100, 100))
        assert region.tobytes() == there.read_region((200, 100), 0, (100, 100)).tobytes()
        assert sorted(left_behind(bucket)) == ["image-a.jpg", "image-b.jpg", "map.jpg", "slide.vms"]
    assert left_behind(bucket) == []


def test_a_fingerprint_changes_with_each_of_the_files(
    bucket: FolderBucket, write_dicom: Callable[[Path], list[str]]
) -> None:
    write_dicom(bucket.root / "b" / "d")
    write_vms(bucket.root / "b" / "v")
    (bucket.root / "b" / "m").mkdir()
    for name in ("m.mrxs", "m/Slidedat.ini"):
        (bucket.root / "b" / name).write_text("one")
    for uri, changed in (
        ("s3://b/m.mrxs", "m/Slidedat.ini"),
        ("s3://b/d/level-0.dcm", "d/level-2.dcm"),
        ("s3://b/v/slide.vms", "v/map.jpg"),
    ):
        before = fingerprint_source(uri, STORAGE)
        assert fingerprint_source(uri, STORAGE) == before
        path = bucket.root / "b" / changed
        path.write_bytes(path.read_bytes() + b"more")
        assert fingerprint_source(uri, STORAGE) != before
    with pytest.raises(FileNotFoundError):
        fingerprint_source("s3://b/none.mrxs", STORAGE)
    assert list_companions("s3://b/a.svs", STORAGE) == {}


def test_files_of_another_slide_beside_it_do_not_replace_a_slide(
    bucket: FolderBucket, write_dicom: Callable[[Path], list[str]]
) -> None:
    paths = write_dicom(bucket.root / "b" / "d")
    uri = "s3://b/d/level-0.dcm"
    with open_slide(uri, STORAGE) as slide:
        record = SlideRecord(
            name="level-0", cases=("c",), source=uri, identity=slide.properties["openslide.quickhash-1"],
            fingerprint=fingerprint_source(uri, STORAGE), mpp=0.5, width=512, height=512, origin=(0, 0), tile_side=64,
            tiles=1, tissue=0.5,
        )  # fmt: skip
    assert not find_replaced(record, STORAGE)
    other = Path(paths[0]).read_bytes().replace(b"1.2.3", b"4.5.6")
    (bucket.root / "b" / "d" / "other.dcm").write_bytes(other)
    assert fingerprint_source(uri, STORAGE) != record.fingerprint
    assert not find_replaced(record, STORAGE)
    os.unlink(paths[2])
    shutil.copy(paths[1], paths[0])
    assert find_replaced(record, STORAGE)


def test_a_slide_of_several_files_that_is_not_there(bucket: FolderBucket) -> None:
    for name in ("none.mrxs", "none.dcm", "none.vms", "none"):
        with (
            pytest.raises(Unreadable, match=f"slide s3://b/{name} does not exist"),
            open_slide(f"s3://b/{name}", STORAGE),
        ):
            pass
