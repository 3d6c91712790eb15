"""Decoding: JPEG and PNG give pixels, everything else is a corrupt tile and nothing worse."""

import contextlib
import io
import warnings

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histill.stream.decode import CorruptTile, decode_image, decode_mask

pytestmark = pytest.mark.unit

SIDE = 32
SMOOTH = np.add.outer(np.arange(SIDE), np.arange(SIDE))[..., None] + np.array([90, 40, 120])
IMAGE = SMOOTH.astype(np.uint8)
GREY = np.ascontiguousarray(IMAGE[..., 0])
MASK = (SMOOTH[..., 0] % 3).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


JPEG = simplejpeg.encode_jpeg(IMAGE, quality=95, colorsubsampling="444")


def test_png_is_decoded_exactly() -> None:
    assert np.array_equal(decode_image(png(IMAGE), SIDE), IMAGE)
    assert np.array_equal(decode_mask(png(MASK), SIDE), MASK)


def test_jpeg_is_decoded_as_rgb() -> None:
    decoded = decode_image(JPEG, SIDE)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - IMAGE).max() < 8


def test_grey_images_become_rgb() -> None:
    for data in (png(GREY), simplejpeg.encode_jpeg(GREY[..., None], colorspace="GRAY", quality=100)):
        decoded = decode_image(data, SIDE)
        assert decoded.shape == (SIDE, SIDE, 3)
        assert np.abs(decoded.astype(int) - GREY[..., None]).max() < 4


@pytest.mark.parametrize("data", [JPEG, png(IMAGE)], ids=["jpeg", "png"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6])
def test_truncated_images_are_corrupt(data: bytes, kept: float) -> None:
    with pytest.raises(CorruptTile):
        decode_image(data[: int(len(data) * kept)], SIDE)


@pytest.mark.parametrize("data", [JPEG, png(IMAGE)], ids=["jpeg", "png"])
def test_another_size_is_corrupt_and_named(data: bytes) -> None:
    with pytest.raises(CorruptTile, match="32x32 px instead of 64x64"):
        decode_image(data, 64)


@pytest.mark.parametrize(
    "data",
    [b"", b"text", png(MASK)[:40], png(IMAGE), png(MASK[:16]), png(MASK.astype(np.uint16))],
    ids=["empty", "text", "truncated", "colours", "size", "16 bit"],
)
def test_what_is_no_mask_of_the_size_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptTile, match="mask"):
        decode_mask(data, SIDE)


def test_a_decompression_bomb_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for decode in (decode_image, decode_mask):
        with pytest.raises(CorruptTile):
            decode(png(IMAGE), SIDE)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([JPEG, png(IMAGE)]), st.data())
def test_any_damage_gives_an_image_or_a_corrupt_tile(data: bytes, draw: st.DataObject) -> None:
    spoilt = bytearray(data)
    for place in draw.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
        spoilt[place] = draw.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for decode in (decode_image, decode_mask):
            with contextlib.suppress(CorruptTile):
                decode(bytes(spoilt), SIDE)
