"""The reasons given for slides that cannot be used; fetched slides leave no file behind."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from openslide import OpenSlide

from histill.config.common import Storage
from histill.tiles.slide_files import open_slide
from histill.tiles.sources import Unreadable
from testbed.folder_bucket import folder_bucket

pytestmark = pytest.mark.unit

STORAGE = Storage()


def reason(path: str | Path) -> str:
    with pytest.raises(Unreadable) as caught, open_slide(str(path), STORAGE) as slide:
        slide.read_region((0, 0), 0, slide.dimensions)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        (50001, "WEBP"),
        (34712, "JPEG2000"),
        (33003, "APERIO_JP2000_YCBC"),
        (50002, "JPEGXL"),
        (34925, "LZMA"),
        (60123, "as TIFF compression 60123"),
    ],
)
def test_a_codec_that_openslide_lacks_is_no_damage(
    tmp_path: Path, codec: int, name: str, write_slide: Callable[..., str]
) -> None:
    path = write_slide(tmp_path / "a.tiff")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages.first.tags["Compression"].overwrite(codec)
    said = reason(path)
    assert name in said
    assert str(codec) in said
    assert "pyramidal TIFF with JPEG tiles" in said
    assert "damaged" not in said


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_more_than_eight_bits_are_refused(tmp_path: Path, dtype: str) -> None:
    """OpenSlide keeps the upper 8 of 16 bits: a slide of 12 bits would be nearly black."""
    path = tmp_path / "deep.tiff"
    tifffile.imwrite(path, np.full((256, 256, 3), 3000, dtype), tile=(256, 256), photometric="rgb")
    assert f"has {np.dtype(dtype).itemsize * 8} bits per channel; convert it to 8-bit RGB" in reason(path)


def test_openslide_mirrors_each_tile_by_itself_and_such_a_slide_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "turned.tiff"
    pixels = np.random.default_rng(0).integers(0, 255, (256, 256, 3)).astype(np.uint8)
    for orientation in range(1, 9):
        tag = (274, "H", 1, orientation, True)
        tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", extratags=[tag])
        if orientation == 2:
            with OpenSlide(path) as slide:
                read = np.asarray(slide.read_region((0, 0), 0, (128, 128)))[..., :3]
            assert (read == pixels[:128, 127::-1]).all()  # a whole mirrored slide would show its right half there
        if orientation > 1:
            assert f"(TIFF orientation {orientation}); save it upright" in reason(path)
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb")
    with open_slide(str(path), STORAGE) as slide:
        assert slide.dimensions == (256, 256)


def test_channels_and_pages_that_openslide_takes_for_others(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    four = np.full((256, 256, 4), 90, np.uint8)
    tifffile.imwrite(path, four, tile=(128, 128), photometric="rgb", extrasamples=["unspecified"])
    assert "has a channel of unspecified meaning" in reason(path)
    tifffile.imwrite(path, four, tile=(128, 128), photometric="rgb", extrasamples=["unassalpha"])
    with open_slide(str(path), STORAGE) as slide:
        assert slide.dimensions == (256, 256)
    with tifffile.TiffWriter(path) as writer:
        for side in (64, 256):
            writer.write(four[:side, :side, :3], tile=(64, 64), photometric="rgb")
    assert "has a page of 256 x 256 px behind a first one of 64 x 64" in reason(path)


def test_files_that_are_no_slides(tmp_path: Path, write_slide: Callable[..., str]) -> None:
    (tmp_path / "folder").mkdir()
    assert "is a folder; name the slide's file" in reason(tmp_path / "folder")
    (tmp_path / "empty.svs").touch()
    assert "is empty (0 bytes)" in reason(tmp_path / "empty.svs")
    assert "does not exist" in reason(tmp_path / "none.svs")
    (tmp_path / "m.mrxs").write_bytes(b"\xff\xd8\xff\xe0")
    assert "lacks its folder m/ (MIRAX)" in reason(tmp_path / "m.mrxs")
    stripes = tmp_path / "stripes.tiff"
    tifffile.imwrite(stripes, np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    assert "not in a format that OpenSlide reads" in reason(stripes)
    bits = tmp_path / "bits.tiff"  # the tag for bits per channel may be missing, since it is 1
    tifffile.imwrite(bits, np.zeros((256, 256), bool), tile=(256, 256), photometric="minisblack")
    assert "holds what OpenSlide does not read (Cannot get required TIFF tag: 258)" in reason(bits)


def test_uncompressed_tiles_that_libtiff_does_not_read_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, np.full((480, 480, 3), 90, np.uint8), tile=(240, 240), photometric="rgb")
    assert (tifffile.imread(path) == 90).all()
    assert "has uncompressed tiles whose bytes are no multiple of 1,024" in reason(path)


def test_damage_is_damage(tmp_path: Path, write_slide: Callable[..., str]) -> None:
    path = Path(write_slide(tmp_path / "a.tiff", compression="deflate"))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages.first.dataoffsets[0]
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    assert "is damaged (" in reason(path)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that stands in for the bucket `b`, next to a temporary folder of the test."""
    for name in ("b", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with folder_bucket(tmp_path):
        yield tmp_path / "b"


def test_a_fetched_slide_has_no_name_that_a_kill_could_leave(bucket: Path, write_slide: Callable[..., str]) -> None:
    path = write_slide(bucket / "a.tiff")
    with open_slide("s3://b/a.tiff", STORAGE) as slide, OpenSlide(path) as there:
        assert list((bucket.parent / "tmp").iterdir()) == []
        region = slide.read_region((100, 50), 0, (300, 300))
        assert region.tobytes() == there.read_region((100, 50), 0, (300, 300)).tobytes()
        assert slide.properties["openslide.quickhash-1"] == there.properties["openslide.quickhash-1"]
    assert "does not exist" in reason("s3://b/none.tiff")


def test_what_openslide_misreads_is_refused_in_object_storage_too(bucket: Path) -> None:
    tifffile.imwrite(bucket / "deep.tiff", np.full((256, 256, 3), 3000, np.uint16), tile=(256, 256), photometric="rgb")
    assert "has 16 bits per channel" in reason("s3://b/deep.tiff")


def test_a_file_of_sqlite_keeps_its_name_while_it_is_open(bucket: Path) -> None:
    (bucket / "a.svslide").write_bytes(b"SQLite format 3\0" + bytes(200))
    assert "not in a format" in reason("s3://b/a.svslide")
    assert list((bucket.parent / "tmp").rglob("*.svslide")) == []


def test_a_temporary_folder_that_is_full(bucket: Path, write_slide: Callable[..., str]) -> None:
    write_slide(bucket / "a.tiff")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); import signal; "
    limit += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    arguments = [str(bucket), str(bucket.parent / "tmp"), "a.tiff"]
    done = subprocess.run(
        [sys.executable, "-c", limit + KILLED, *arguments],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"slide s3://b/a.tiff cannot be fetched into {bucket.parent}/tmp (File too large); set TMPDIR" in done.stderr


KILLED = """
import os, signal, sys, tempfile
from pathlib import Path
from histill.config.common import Storage
from histill.tiles.slide_files import open_slide
from testbed.folder_bucket import folder_bucket
tempfile.tempdir = sys.argv[2]
with folder_bucket(Path(sys.argv[1]).parent), open_slide(f"s3://b/{sys.argv[3]}", Storage()) as slide:
    slide.read_region((0, 0), 0, (10, 10))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_no_slide(tmp_path: Path, write_slide: Callable[..., Any]) -> None:
    for name in ("b", "tmp"):
        (tmp_path / name).mkdir()
    write_slide(tmp_path / "b" / "a.tiff")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "b"), str(tmp_path / "tmp"), "a.tiff"],
        env=dict(os.environ),
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "tmp") == []
