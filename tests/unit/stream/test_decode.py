"""Decoding: JPEG and PNG give pixels; everything else raises CorruptTile and nothing else."""

import contextlib
import errno
import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histill.stream.decode import CorruptTile, decode_image, decode_mask, downscale_area, reduction_for

pytestmark = pytest.mark.unit

SIDE = 32
SMOOTH = np.add.outer(np.arange(SIDE), np.arange(SIDE))[..., None] + np.array([90, 40, 120])
IMAGE = SMOOTH.astype(np.uint8)
GRAY = np.ascontiguousarray(IMAGE[..., 0])
MASK = (SMOOTH[..., 0] % 3).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


JPEG = simplejpeg.encode_jpeg(IMAGE, quality=95, colorsubsampling="444")
Draw = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
NUINSSEG = Path(__file__).parents[4] / "shared" / "data" / "nuinsseg"
SCALES = (2, 4, 8)
BOUND = 1.0  # levels, mean over a tile; measured: 0.69, 0.64 and 0.51 at 1/2, 1/4 and 1/8 at most


def test_png_is_decoded_exactly() -> None:
    assert np.array_equal(decode_image(png(IMAGE), SIDE), IMAGE)
    assert np.array_equal(decode_mask(png(MASK), SIDE), MASK)


def test_jpeg_is_decoded_as_rgb() -> None:
    decoded = decode_image(JPEG, SIDE)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - IMAGE).max() < 8


def test_gray_images_become_rgb() -> None:
    for data in (png(GRAY), simplejpeg.encode_jpeg(GRAY[..., None], colorspace="GRAY", quality=100)):
        decoded = decode_image(data, SIDE)
        assert decoded.shape == (SIDE, SIDE, 3)
        assert np.abs(decoded.astype(int) - GRAY[..., None]).max() < 4


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
    ids=["empty", "text", "truncated", "colors", "size", "16 bit"],
)
def test_what_is_no_mask_of_the_size_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptTile, match="mask"):
        decode_mask(data, SIDE)


def test_a_decompression_bomb_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for decode in (decode_image, decode_mask):
        with pytest.raises(CorruptTile):
            decode(png(IMAGE), SIDE)


TIGHT = """
import resource, sys
import numpy as np
from histill.stream.decode import decode_image
data, side = sys.stdin.buffer.read(), int(sys.argv[1])
into = np.zeros((side, side, 3), np.uint8)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 500_000, held + 500_000))
try:
    decode_image(data, side, into=into)
except MemoryError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process as Linux does")
def test_a_sound_jpeg_that_finds_no_memory_is_not_a_corrupt_tile() -> None:
    side = 1024
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", progressive=True)  # needs all coefficients in memory at once
    assert decode_image(buffer.getvalue(), side).shape == noise.shape
    done = subprocess.run([sys.executable, "-c", TIGHT, str(side)], input=buffer.getvalue(), capture_output=True)
    assert done.stdout.decode().startswith("no memory is left to decode a tile"), done.stderr.decode()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Insufficient memory (case 4)"),  # libjpeg-turbo
        OSError("out of memory when reading image file"),  # Pillow
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_a_lack_of_memory_costs_no_tile(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(simplejpeg, "decode_jpeg", fail)
    monkeypatch.setattr(Image, "open", fail)
    for decode, data in ((decode_image, JPEG), (decode_image, png(IMAGE)), (decode_mask, png(MASK))):
        with pytest.raises(MemoryError, match="no memory is left"):
            decode(data, SIDE)


def test_any_other_fault_of_the_codecs_is_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EINVAL, "of another kind")

    monkeypatch.setattr(Image, "open", fail)
    for decode in (decode_image, decode_mask):
        with pytest.raises(CorruptTile, match="of another kind"):
            decode(png(IMAGE), SIDE)


def area_averages(image: np.ndarray, by: int) -> np.ndarray:
    """The means of `by` x `by` blocks, float64, not rounded."""
    side = image.shape[0] // by
    return image.astype(np.float64).reshape(side, by, side, by, 3).mean((1, 3))


def deviations(data: bytes, size_px: int) -> list[float]:
    """Mean absolute difference from area downsampling of the full decode, at each of SCALES."""
    full = decode_image(data, size_px)
    return [float(np.abs(decode_image(data, size_px, reduction=by) - area_averages(full, by)).mean()) for by in SCALES]


@pytest.mark.parametrize("subsampling", ["420", "444"])
def test_scaled_decode_matches_area_downsampling(draw_tile: Draw, subsampling: str) -> None:
    """Half of the difference comes from rounding the result, the rest from the different computation."""
    for seed in range(2):
        image = draw_tile(seed, 512)[0]
        data = simplejpeg.encode_jpeg(image, quality=90, colorsubsampling=subsampling)
        found = deviations(data, 512)
        assert max(found) < BOUND, dict(zip(SCALES, found, strict=True))
        for by in SCALES:  # no color shift either, which a signed mean would show
            difference = decode_image(data, 512, by) - area_averages(decode_image(data, 512), by)
            assert np.abs(difference.mean((0, 1))).max() < 0.5


@pytest.mark.skipif(not NUINSSEG.exists(), reason=f"the tiles of {NUINSSEG} are not on this machine")
def test_scaled_decode_matches_area_downsampling_on_real_tiles() -> None:
    for path in sorted((NUINSSEG / "images").iterdir())[::40]:
        found = deviations(path.read_bytes(), 512)
        assert max(found) < BOUND, (path.name, dict(zip(SCALES, found, strict=True)))


@pytest.mark.parametrize("by", SCALES)
def test_a_png_is_decoded_then_averaged(by: int) -> None:
    """Each halving rounds to whole levels: 0.5, 1.0 and 1.28 at most, 0.25, 0.33 and 0.41 on average."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    small = decode_image(png(noise), 256, reduction=by)
    assert small.shape == (256 // by, 256 // by, 3)
    difference = np.abs(small - area_averages(noise, by))
    assert difference.max() <= (1.0 if by < 8 else 1.5)
    assert difference.mean() < 0.45


@pytest.mark.parametrize("by", [1, *SCALES])
def test_a_jpeg_is_decoded_into_the_memory_it_is_given(by: int) -> None:
    given = np.zeros((2, SIDE // by, SIDE // by, 3), np.uint8)
    decoded = decode_image(JPEG, SIDE, by, into=given[1])
    assert np.shares_memory(decoded, given)
    assert np.array_equal(given[1], decode_image(JPEG, SIDE, by))
    assert not given[0].any()


@pytest.mark.parametrize(
    ("size_px", "needed_px", "reduction"),
    [
        *[(512, 512, 1), (512, 257, 1), (512, 256, 2), (512, 128, 4), (512, 64, 8), (512, 32, 8)],
        *[(100, 25, 4), (100, 12, 4), (250, 32, 2), (251, 32, 1)],
    ],
)
def test_a_tile_is_decoded_at_the_smallest_scale_that_is_large_enough(
    size_px: int, needed_px: int, reduction: int
) -> None:
    assert reduction_for(size_px, needed_px) == reduction


def weights(size: int, side: int) -> np.ndarray:
    """The weight of each of `size` pixels in each of `side` equal parts of an edge, float64 [side, size]."""
    start, end = np.arange(side)[:, None] * size / side, (np.arange(side)[:, None] + 1) * size / side
    pixel = np.arange(size)
    return np.clip(np.minimum(pixel + 1, end) - np.maximum(pixel, start), 0, None) * side / size


@pytest.mark.parametrize(("side", "bound"), [(384, 0.3), (256, 0.3), (128, 0.4), (64, 0.5), (192, 2.0), (96, 3.0)])
def test_shrinking_averages_areas(draw_tile: Draw, side: int, bound: float) -> None:
    """Where the ratio of the sides is not a power of 2, halving first makes the result a little softer."""
    image = draw_tile(0, 512)[0]
    across = weights(512, side)
    expected = np.einsum("ai,bj,ijc->abc", across, across, image.astype(np.float64), optimize=True)
    small = downscale_area(image, side)
    assert (small.shape, small.dtype) == ((side, side, 3), np.uint8)
    assert np.abs(small - expected).mean() < bound
    assert abs((small - expected).mean()) < 0.4


def test_an_image_of_the_side_asked_for_is_left_alone() -> None:
    assert downscale_area(IMAGE, SIDE) is IMAGE


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
        with contextlib.suppress(CorruptTile):
            assert decode_image(memoryview(spoilt), SIDE, 4).shape == (8, 8, 3)
