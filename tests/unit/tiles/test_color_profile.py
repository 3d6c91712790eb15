"""Color profiles (ICC) of slides: converted by the equation when that is asked for, and otherwise left alone."""

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image, ImageCms

import histill.tiles.ingest
from histill.config.common import Storage
from histill.config.ingest_tiles import IngestConfig, SlideSource
from histill.config.load import validate
from histill.errors import InputError
from histill.tiles.color_profile import find_conversion
from histill.tiles.ingest import ingest
from histill.tiles.slide_records import read_slides
from histill.tiles.slides import SlideRow, open_slide
from histill.tiles.tiling import Squares, cut_squares

pytestmark = pytest.mark.unit

GAMMA = 563 / 256
WIDE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
"""XYZ under D50 of Adobe RGB (1998)'s red, green and blue, in columns."""
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
"""The same of sRGB."""
CORNERS = tuple((x, y) for y in range(0, 512, 64) for x in range(0, 512, 64))


def make_profile(intent: int = 1) -> bytes:
    """A version 2 profile of a display with the primaries WIDE and the exponent GAMMA (ICC.1:2001-04)."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    text = b"test\0"
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249), b"cprt": b"text\0\0\0\0" + text}
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(4 + 4 + 2 + 1 + 67)
    for name, primary in zip(b"rgb", WIDE.T, strict=True):
        tags[bytes([name]) + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*primary)
        tags[bytes([name]) + b"TRC"] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(GAMMA * 256))
    table, data = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I4xI", 128 + len(table + data), 0x02400000) + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(24)
    head += struct.pack(">I", intent) + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + table + data


def to_srgb(pixels: np.ndarray) -> np.ndarray:
    """What pixels of that display, uint8 [H, W, 3], are in sRGB (IEC 61966-2-1), float64 in 0 to 255."""
    linear = (pixels / 255) ** GAMMA @ (np.linalg.inv(SRGB) @ WIDE).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def picture(seed: int = 0) -> np.ndarray:
    """Stained tissue, grainy, with a blank tile at the corner: uint8 [512, 512, 3]."""
    noise = np.random.default_rng(seed).normal(0, 25, (512, 512, 3))
    pixels = (np.array((190.0, 110, 160)) + noise).clip(0, 255).astype(np.uint8)
    pixels[:64, :64] = 255
    return pixels


def write(path: Path, profile: bytes | None, seed: int = 0) -> str:
    how: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb", "iccprofile": profile, "metadata": None}
    tifffile.imwrite(path, picture(seed), resolution=(2e4, 2e4), resolutionunit="CENTIMETER", **how)
    return str(path)


def source(**keys: Any) -> SlideSource:
    return SlideSource(**{"paths": ("a.tif",), "mpp": 0.5, "min_tissue": 0.0} | keys)


def cut(path: str, threads: int = 1, **keys: Any) -> list[bytes]:
    """The JPEGs of all tiles of 64 px."""
    row, squares = SlideRow(path, "case"), Squares(CORNERS, 64.0, 0.5)
    with open_slide(path, Storage()) as slide:
        return [tile.image for tile in cut_squares(slide, row, squares, source(**keys), 64, threads)]


def encode(pixels: np.ndarray) -> list[bytes]:
    parts = (np.ascontiguousarray(pixels[y : y + 64, x : x + 64]) for x, y in CORNERS)
    return [simplejpeg.encode_jpeg(part, 90, colorspace="RGB", colorsubsampling="444") for part in parts]


@pytest.mark.parametrize("intent", [0, 1])
def test_icc_pixels_are_those_of_the_equation(tmp_path: Path, intent: int) -> None:
    """A profile of three primaries gives the same in the perceptual and the relative colorimetric intent."""
    path = write(tmp_path / "a.tif", make_profile(intent))
    pixels = np.random.default_rng(1).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    with open_slide(path, Storage()) as slide:
        convert = find_conversion(slide, path, source(icc="srgb"))
    assert convert is not None
    expected = to_srgb(pixels)
    assert np.abs(convert(pixels) - expected).max() < 1.6
    assert np.abs(convert(pixels) - expected).mean() < 0.3  # most of it rounding to whole numbers
    assert np.abs(pixels - expected).mean() > 5


def test_icc_tiles_are_those_of_the_whole_picture_converted_by_any_number_of_threads(tmp_path: Path) -> None:
    profile = make_profile()
    path = write(tmp_path / "a.tif", profile)
    whole = Image.fromarray(picture())
    ImageCms.profileToProfile(
        whole, ImageCms.getOpenProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC, inPlace=True,
    )  # fmt: skip
    expected = encode(np.asarray(whole))
    assert cut(path, icc="srgb") == expected
    assert cut(path, threads=4, icc="srgb") == expected
    assert cut(path) == encode(picture())
    assert expected[1:] != encode(picture())[1:]


def test_icc_leaves_a_blank_tile_blank(tmp_path: Path) -> None:
    blank = cut(write(tmp_path / "a.tif", make_profile()), icc="srgb")[0]
    assert (simplejpeg.decode_jpeg(blank) == 255).all()


def test_icc_leaves_a_slide_without_a_profile_as_it_is(tmp_path: Path) -> None:
    assert cut(write(tmp_path / "a.tif", None), icc="srgb") == encode(picture())


UNUSABLE = {
    "no profile": b"not a profile" * 20,
    "cut short": make_profile()[:200],
    "of another color space": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    "of an unknown intent": make_profile(77),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_icc_profile_that_cannot_be_used_is_refused(
    tmp_path: Path, in_process: Callable[..., None], kind: str
) -> None:
    in_process(histill.tiles.ingest)
    path = write(tmp_path / "a.tif", UNUSABLE[kind])
    keys = {"paths": [path], "mpp": 0.5, "min_tissue": 0.0}
    data = {"output": str(tmp_path / "set"), "tile_px": 64, "slides": keys | {"icc": "srgb"}}
    with pytest.raises(
        InputError, match=r"a\.tif has a color profile that cannot be used \(.+\); leave out slides\.icc"
    ):
        ingest(validate(IngestConfig, data, "test"))
    asked = source(icc="srgb").for_prediction(cut=False)
    with (
        pytest.raises(InputError, match="learned from converted tiles: leave the slide out"),
        open_slide(path, Storage()) as slide,
    ):
        find_conversion(slide, path, asked)
    assert ingest(validate(IngestConfig, data | {"slides": keys}, "test")).manifest.header.tiles == 64


def test_an_icc_ingest_says_which_slides_have_no_profile(tmp_path: Path, in_process: Callable[..., None]) -> None:
    in_process(histill.tiles.ingest)
    paths = [write(tmp_path / "a.tif", make_profile()), write(tmp_path / "b.tif", None, seed=1)]
    slides = {"paths": paths, "mpp": 0.5, "min_tissue": 0.0}
    data = {"output": str(tmp_path / "srgb"), "tile_px": 64, "slides": slides | {"icc": "srgb"}}
    found = ingest(validate(IngestConfig, data, "test"))
    assert found.manifest.header.icc == "srgb"
    assert [note for note in found.notes if "profile" in note] == [
        f"1 of 2 slides have no color profile, so their colors were left as they are: {paths[1]}."
    ]
    assert [record.icc for record in read_slides(found.manifest, Storage()).values()] == ["srgb", "none"]
    plain = ingest(validate(IngestConfig, data | {"output": str(tmp_path / "plain"), "slides": slides}, "test"))
    assert plain.manifest.header.icc is None
    assert not [note for note in plain.notes if "profile" in note]
    assert [record.icc for record in read_slides(plain.manifest, Storage()).values()] == [None, None]
    for name in ("slides.json", "ingest.json"):
        assert '"icc"' not in (tmp_path / "plain" / name).read_text()
    rows = np.arange(128)
    contents = [each.manifest.column("content", rows) for each in (found, plain)]
    assert (contents[0] == contents[1]).tolist() == [True] + [False] * 63 + [True] * 64  # of a, the blank tile alone


def test_icc_and_keep_jpeg_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="leave one of the two out"):
        source(icc="srgb", keep_jpeg=True)
