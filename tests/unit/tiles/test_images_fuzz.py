"""Generated images and masks in many formats: each is read as its format's specification says, or refused.

The files are written here byte by byte (PNG, BMP) or by tifffile and simplejpeg, and what they must show is computed
from what was written, never by the code under test. HISTILL_FUZZ=20 tries twenty times as many.
"""

import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from histill.stream.decode import decode_image, decode_mask
from histill.tiles.images import check_image, normalize_mask
from histill.tiles.sources import Unreadable

pytestmark = pytest.mark.unit
SIDE = 8
TIMES = int(os.environ.get("HISTILL_FUZZ", "1"))
SENTENCE = re.compile(r"(the mask )?f\.x .*\.")


def many(examples: int) -> Any:
    return settings(max_examples=examples * TIMES, suppress_health_check=list(HealthCheck))


@dataclass(frozen=True)
class File:
    """Bytes and what they show (RGB or mask values); None: to be refused. `near` is a tolerance between decoders."""

    data: bytes = field(repr=False)
    shown: np.ndarray | None = field(repr=False)
    near: int = 0
    how: str = ""


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def exif(orientation: int) -> bytes:
    """A TIFF header with one entry: EXIF 2.32, 4.6.2."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def shown_as(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF 2.32, table 6: where row 0 and column 0 of the stored picture are when it is shown."""
    by = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[::-1].swapaxes(0, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }
    return by.get(orientation, lambda a: a)(pixels)


def over_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(color * share + 255 * (1 - share)).astype(np.uint8)


def png(samples: np.ndarray, kind: int, depth: int, *extra: bytes) -> bytes:
    """A PNG, ISO/IEC 15948, of samples [H, W, C]; `extra` are chunks before the pixels."""
    height, width, channels = samples.shape
    bits = np.unpackbits(samples.astype(">u2").view(np.uint8).reshape(height, -1, 2), axis=2).reshape(height, -1, 16)
    packed = np.packbits(bits[:, :, 16 - depth :].reshape(height, width * channels * depth), axis=1)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    half = len(content) // 2
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = (chunk(b"IDAT", content[:half]), chunk(b"IDAT", content[half:]))
    return b"".join((b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *extra, *pixels, chunk(b"IEND", b"")))


KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8), (4, 16)]
KINDS += [(6, 8), (6, 16)]


@st.composite
def png_images(draw: st.DrawFn) -> File:
    kind, depth = draw(st.sampled_from(KINDS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    top = 2**depth - 1
    samples = rng.integers(0, top + 1, (SIDE, SIDE, channels))
    samples = samples if draw(st.booleans()) else samples[rng.integers(0, 2, SIDE)]  # of few colors
    extra, alpha = [], np.full((SIDE, SIDE), 255)
    color = samples[..., : {0: 1, 2: 3, 3: 1, 4: 1, 6: 3}[kind]] * 255 // top
    clear = draw(st.booleans())
    if kind == 3:
        palette = rng.integers(0, 256, (top + 1, 3)).astype(np.uint8)
        extra, color = [chunk(b"PLTE", palette.tobytes())], palette[samples[..., 0]]
        if clear:
            steps = rng.integers(0, 256, rng.integers(1, top + 2)).astype(np.uint8)
            extra.append(chunk(b"tRNS", steps.tobytes()))
            alpha = np.append(steps, np.full(256, 255))[samples[..., 0]]
    elif kind in (4, 6):
        alpha = samples[..., -1] * 255 // top
    elif clear:
        key = samples[0, 0]
        extra = [chunk(b"tRNS", key.astype(">u2").tobytes())]
        alpha = np.where((samples == key).all(-1), 0, 255)
    orientation = draw(st.integers(0, 9))
    if orientation:
        extra.append(chunk(b"eXIf", exif(orientation)))
    animated = draw(st.integers(0, 9)) == 0
    if animated:
        extra.append(chunk(b"acTL", struct.pack(">II", 2, 0)))
    shown = shown_as(over_white(np.broadcast_to(color, (SIDE, SIDE, 3)), alpha), orientation)
    refused = depth == 16 or animated or (kind == 0 and 1 < depth < 8 and clear)
    return File(
        png(samples, kind, depth, *extra), None if refused else shown, how=f"PNG {kind} {depth} {clear} {orientation}"
    )


@st.composite
def tiff_images(draw: st.DrawFn) -> File:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    channels = draw(st.sampled_from([1, 3, 4]))
    extra = draw(st.sampled_from(["unassalpha", "assocalpha", "unspecified"])) if channels == 4 else ""
    dtype = draw(st.sampled_from(["u1", "u1", "u1", "u2", "i1", "f4", "u4", "?"]))
    pages, orientation = draw(st.sampled_from([1, 1, 1, 2])), draw(st.integers(1, 8))
    inverted = channels == 1 and dtype in ("u1", "?") and draw(st.booleans())
    shape = (SIDE, SIDE, channels)[: 2 if channels == 1 else 3]
    pixels = (rng.random(shape) * (2 if dtype == "?" else 120)).astype(dtype)
    if dtype == "?" and channels > 1:
        dtype, pixels = "u1", pixels.astype("u1")
    if extra == "assocalpha":  # colors are premultiplied by alpha
        pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])
    photometric = ("miniswhite" if inverted else "minisblack") if channels == 1 else "rgb"
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=draw(st.booleans())) as writer:
        planes = channels > 1 and draw(st.booleans())
        compression = draw(st.sampled_from([None, "zlib"]))
        for _ in range(pages):
            writer.write(
                np.moveaxis(pixels, 2, 0) if planes else pixels,
                photometric=photometric,
                planarconfig="separate" if planes else None,
                extrasamples=[extra] if extra else None,
                compression=compression,
                extratags=[(274, 3, 1, orientation, True)],
                metadata=None,
            )
    gray = pixels.astype(np.int64) * (255 if dtype == "?" else 1)
    gray = 255 - gray if inverted else gray
    color = gray[..., :3] if channels > 1 else np.repeat(gray[..., None], 3, 2)
    alpha = gray[..., 3] if channels == 4 else np.full((SIDE, SIDE), 255)
    shown = color + 255 - alpha[..., None] if extra == "assocalpha" else over_white(color, alpha)
    taken = dtype in ("u1", "?") and pages == 1 and extra != "unspecified"
    if extra == "assocalpha" and planes and compression is None:  # which Pillow 13 cannot read
        taken = False
    how = f"TIFF {dtype} {channels} {extra} {orientation} {photometric} {compression} {planes}"
    return File(buffer.getvalue(), shown_as(shown, orientation) if taken else None, extra == "assocalpha", how)


@st.composite
def jpeg_images(draw: st.DrawFn) -> File:
    """Compared with OpenCV's decoder; encoded by simplejpeg, or by Pillow where simplejpeg cannot."""
    seed, orientation = draw(st.integers(0, 2**32)), draw(st.integers(0, 9))
    pixels = cv2.resize(np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8), (SIDE, SIDE))
    how = draw(st.sampled_from(["444", "420", "422", "440", "gray", "progressive", "adobe", "cmyk"]))
    quality = draw(st.integers(60, 100))
    if how in ("progressive", "adobe", "cmyk"):
        buffer = io.BytesIO()
        image = Image.fromarray(pixels)
        options: dict[str, Any] = {"progressive": how == "progressive", "keep_rgb": how == "adobe"}
        (image.convert("CMYK") if how == "cmyk" else image).save(buffer, "JPEG", quality=quality, **options)
        data = buffer.getvalue()
    elif how == "gray":
        data = simplejpeg.encode_jpeg(pixels[..., :1].copy(), colorspace="GRAY", quality=quality)
    else:
        data = simplejpeg.encode_jpeg(pixels, colorsubsampling=how, quality=quality)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), flags)[..., ::-1]
    if orientation:
        content = b"Exif\0\0" + exif(orientation)
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[2:]
    return File(data, None if how == "cmyk" else shown_as(shown, orientation), 2, f"JPEG {how} {orientation}")


@st.composite
def other_images(draw: st.DrawFn) -> File:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pixels = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    how = draw(st.sampled_from(["bmp", "webp", "gif", "two gifs", "ppm", "text", "nothing", "tall"]))
    if how == "bmp":  # rows from the bottom up, BGR
        header = b"BM" + struct.pack("<IHHI", 54 + pixels.size, 0, 0, 54)
        header += struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, pixels.size, 2835, 2835, 0, 0)
        return File(header + pixels[::-1, :, ::-1].tobytes(), pixels)
    if how in ("text", "nothing"):
        return File(b"P6 is no picture" if how == "text" else b"", None)
    if how == "ppm":
        return File(b"P6 %d %d 255\n" % (SIDE, SIDE) + pixels.tobytes(), None)
    if how == "tall":
        return File(png(np.vstack([pixels, pixels]), 2, 8), None)
    buffer = io.BytesIO()
    if how == "webp":
        alpha = rng.integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
        Image.fromarray(np.dstack([pixels, alpha])).save(buffer, "WEBP", lossless=True, exact=True)
        return File(buffer.getvalue(), over_white(pixels, alpha))
    few = pixels[..., 0] % 7
    palette = rng.permutation(21 * 3)[:21].astype(np.uint8)
    frames = [Image.frombytes("P", (SIDE, SIDE), each.tobytes()) for each in (few, 6 - few)]
    for frame in frames:
        frame.putpalette(palette.tobytes())
    more: dict[str, Any] = {"save_all": True, "append_images": frames[1:]} if how == "two gifs" else {}
    frames[0].save(buffer, "GIF", **more)
    return File(buffer.getvalue(), None if more else palette.reshape(-1, 3)[few])


def attempt(take: Callable[[], bytes]) -> bytes | str:
    """The result, or the sentence of the refusal."""
    try:
        return take()
    except Unreadable as refusal:
        return str(refusal)


def check(file: File, taken: bytes | str, decoders: list[Callable[[bytes], np.ndarray]]) -> None:
    """`taken` shows what `file` shows, with any decoder, or is the refusal of a file that must be refused."""
    if isinstance(taken, str):
        assert SENTENCE.fullmatch(taken), taken
        assert file.shown is None, taken
        return
    assert file.shown is not None, "it was to be refused"
    for decode in decoders:
        np.testing.assert_allclose(decode(taken).astype(int), file.shown, atol=file.near, rtol=0)


IMAGE_DECODERS: list[Callable[[bytes], np.ndarray]] = [
    lambda data: decode_image(data, SIDE),
    lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1],
]


@many(700)
@given(st.one_of(png_images(), png_images(), tiff_images(), jpeg_images(), other_images()))
def test_images(file: File) -> None:
    check(file, attempt(lambda: check_image(file.data, "f.x", SIDE)), IMAGE_DECODERS)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about truncated EXIF
@many(150)
@given(st.one_of(png_images(), jpeg_images(), tiff_images(), other_images()), st.data())
def test_damaged_images(file: File, draw: st.DataObject) -> None:
    """A PNG with a changed byte is refused or shows the same; no truncated file becomes half a picture."""
    data = bytearray(file.data or b"\0")
    place = draw.draw(st.integers(0, len(data) - 1))
    if data.startswith(b"\x89PNG") and draw.draw(st.booleans()):
        data[place] ^= draw.draw(st.integers(1, 255))
    else:
        del data[place:]
    taken = attempt(lambda: check_image(bytes(data), "f.x", SIDE))
    check(File(bytes(data), None) if isinstance(taken, str) else file, taken, IMAGE_DECODERS[:1])


@st.composite
def masks(draw: st.DrawFn) -> tuple[File, dict[int, int] | None]:
    """A mask, and the meaning that is given for its values, if any."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = draw(
        st.sampled_from([(0, 1), (0, 255), (0, 1, 2), (0, 1, 255), (255,), (0, 254), (0, 3, 300), (0, 65535)])
    )
    meaning = draw(st.sampled_from([None, None, {0: 0, 1: 1, 255: 255}, {0: 2, 255: 0, 65535: 1, 300: 7, 3: 0}]))
    where = np.resize(np.array(values), SIDE * SIDE)
    stored = rng.permutation(where).reshape(SIDE, SIDE)
    orientation = draw(st.integers(1, 8))
    how = draw(st.sampled_from(["gray", "rgb", "rgba", "alpha", "bits", "palette", "inverted", "deep", "colors",
                                "jpeg", "webp", "2 bits", "tiff", "white is 0", "two pages", "small"]))  # fmt: skip
    data, read = mask_file(how, stored, orientation, rng)
    if read is None:
        return File(data, None, how=how), meaning
    table = meaning if meaning is not None else own_meaning(read)
    known = table is not None and all(int(value) in table for value in np.unique(read))
    shown = shown_as(np.vectorize((table or {}).get, otypes=[int])(read), orientation) if known else None
    return File(data, shown, how=f"{how} {values} {meaning} {orientation}"), meaning


def own_meaning(values: np.ndarray) -> dict[int, int] | None:
    """The meaning for this mask alone, as documented; None: it has no class index for each pixel."""
    found = set(values.ravel().tolist())
    if max(found) > 255:
        return None
    return {0: 0, 255: 1} if 255 in found and found <= {0, 255} else {value: value for value in range(256)}


def mask_file(
    how: str, stored: np.ndarray, orientation: int, rng: np.random.Generator
) -> tuple[bytes, np.ndarray | None]:
    """A file with these values, and the values that a reader should get from it; None: they are ambiguous."""
    fits, turn = int(stored.max()) < 256, chunk(b"eXIf", exif(orientation))
    low = np.minimum(stored, 255)
    gray, opaque = low[..., None], np.full((SIDE, SIDE, 1), 255)
    if how in ("gray", "small"):
        data = png(gray if how == "gray" else gray[:4], 0, 8, turn)
        return data, low if how == "gray" else None
    if how == "rgb":
        return png(np.repeat(gray, 3, 2), 2, 8, turn), low
    if how == "rgba":
        return png(np.dstack([gray, gray, gray, opaque]), 6, 8, turn), low
    if how == "alpha":  # read as gray it would be empty
        return png(np.dstack([0 * gray, gray > 0]) * 255, 4, 8, turn), None if (low > 0).any() else 0 * low
    if how == "bits":
        return png((gray > 0).astype(int), 0, 1, turn), (low > 0) * 255
    if how in ("palette", "inverted"):
        colors = rng.integers(1, 256, (256, 3)).astype(np.uint8)
        colors[0] = 0
        if how == "inverted":
            colors[:] = np.arange(255, -1, -1)[:, None]
        return png(gray, 3, 8, chunk(b"PLTE", colors.tobytes()), turn), low if how == "palette" else None
    if how == "deep":
        return png(stored[..., None], 0, 16, turn), stored
    if how == "colors":
        colored = np.dstack([gray, 255 - gray, gray])
        return png(colored, 2, 8, turn), None
    if how == "2 bits":
        return png(gray & 3, 0, 2, turn), None
    buffer = io.BytesIO()
    if how in ("jpeg", "webp"):
        Image.fromarray(low.astype(np.uint8)).save(buffer, how, quality=100)
        return buffer.getvalue(), None
    with tifffile.TiffWriter(buffer) as writer:
        for _ in range(2 if how == "two pages" else 1):
            writer.write(
                stored.astype(np.uint8 if fits else rng.choice([np.uint16, np.int32])),
                photometric="miniswhite" if how == "white is 0" else "minisblack",
                compression=rng.choice(["none", "zlib"]),
                extratags=[(274, 3, 1, orientation, True)],
                metadata=None,
            )
    return buffer.getvalue(), stored if how == "tiff" else None


@many(500)
@given(masks())
def test_masks(drawn: tuple[File, dict[int, int] | None]) -> None:
    file, meaning = drawn
    taken = attempt(lambda: normalize_mask(file.data, "f.x", "f.x", SIDE, meaning))
    check(file, taken, [lambda data: decode_mask(data, SIDE), lambda data: np.asarray(Image.open(io.BytesIO(data)))])
