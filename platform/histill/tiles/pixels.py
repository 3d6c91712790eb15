"""Convert the bytes of a picture to RGB pixels; ingest and stream share the rules of what is applied and refused.

Applied: the EXIF orientation (of JPEG, PNG, TIFF and WebP); transparent pixels, by an alpha channel or a transparent
color, are composited over white, the color of glass; gray, bilevel and palette pictures become RGB. A color profile is
not applied: pixels are taken as they are stored.

Refused: more than 8 bits per channel, since it is unknown which of them hold the picture; CMYK, YCbCr and LAB, which
need a profile; signed and fractional values; files of several pictures; and formats other than FORMATS.
"""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000")
TURNED = "turned upright, as the orientation in the file says"
LAID_OVER_WHITE = "transparent in part and laid over white"
PROFILED = "stored with a color profile or gamma other than sRGB's, which is not applied"

_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA, _SAMPLE_FORMAT = 274, 258, 262, 277, 338, 339  # TIFF tags
_COMPRESSION, _PLANAR = 259, 284
_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # channels by photometric interpretation
_ALPHA = {1, 2}  # kinds of extra channels: associated and unassociated alpha
_SRGB_GAMMA = (0.45, 0.46)  # 1 / 2.2
_RGB_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX")


class PictureError(ValueError):
    """A picture that is refused; the message follows its name in a sentence: `has ...; convert it ...`."""


def open_picture(data: bytes | memoryview, formats: tuple[str, ...] = FORMATS) -> "ImageFile":
    """Open a picture without decoding it.

    Raises PictureError for a file of several pictures, or of fractional or signed values, and whatever Pillow raises
    for files that it cannot read.
    """
    from PIL import Image

    picture = Image.open(io.BytesIO(data), "r", formats)
    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        raise PictureError(f"holds {frames} pictures; give each a file of its own")
    if picture.format == "TIFF":
        _check_tiff(picture.tag_v2, bits_per_channel(picture, data))  # type: ignore[attr-defined]
    return picture


def _check_tiff(tags: Any, bits: int) -> None:
    kinds = tags.get(_SAMPLE_FORMAT, (1,))
    if set(kinds) - {1, 2} or (2 in kinds and bits <= 8):
        raise PictureError("holds fractions or numbers with a sign; convert it to whole ones from 0 to 255")
    extra = tags.get(_SAMPLES, 1) - _COLORS.get(tags.get(_PHOTOMETRIC, 1), tags.get(_SAMPLES, 1))
    said = tags.get(_EXTRA, ())
    if extra > 0 and (len(said) != extra or set(said) - _ALPHA):  # Pillow treats it as alpha, or drops it
        raise PictureError("has an extra channel that is not marked as alpha; convert it to RGB")
    if 1 in said and tags.get(_PLANAR, 1) == 2 and tags.get(_COMPRESSION, 1) == 1:  # Pillow 13 has no reader for it
        raise PictureError("has colors multiplied by alpha in separate planes, not compressed; convert it to RGB")


def bits_per_channel(picture: "ImageFile", data: bytes | memoryview) -> int:
    """Bits per channel of the file. Pillow's mode does not tell them: it silently reduces 16-bit RGB to 8 bits."""
    if picture.format == "PNG":
        return data[24] if data[12:16] == b"IHDR" else 16
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(_BITS, (1,)))  # type: ignore[attr-defined]
    if picture.format == "JPEG2000":
        start = bytes(data).find(b"\xff\x4f\xff\x51")  # ISO/IEC 15444-1, A.5.1: the markers SOC and SIZ
        count = int.from_bytes(data[start + 40 : start + 42], "big")
        return max(((data[start + 42 + 3 * channel] & 0x7F) + 1 for channel in range(count)), default=16)
    return 8


def check_png(picture: "ImageFile", data: bytes) -> None:
    """Verify the checksums of a PNG, which decoding ignores; Pillow raises for a wrong one."""
    from PIL import Image

    if picture.format == "PNG":
        Image.open(io.BytesIO(data)).verify()


def is_turned(picture: "ImageFile") -> bool:
    """Whether the EXIF orientation differs from the stored one; must be called before decoding."""
    return picture.getexif().get(_ORIENTATION, 1) in range(2, 9)


def turn_upright(picture: "ImageFile") -> "Image":
    """Decode the picture and apply its EXIF orientation."""
    from PIL import ImageOps

    picture.load()  # applies a TIFF's orientation by itself, and then drops the tag
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def read_rgb(picture: "ImageFile", data: bytes | memoryview) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode to RGB, uint8 [H, W, 3]; also return what was done: TURNED, LAID_OVER_WHITE, PROFILED.

    `data` are the bytes that `picture` was opened from. Raises PictureError for what is refused, and whatever Pillow
    raises for damage.
    """
    bits = bits_per_channel(picture, data)
    if bits > 8 or picture.mode.startswith(("I", "F")):
        raise PictureError(f"has more than 8 bits per channel ({max(bits, 16)}); convert it to 8-bit RGB")
    if picture.mode not in _RGB_MODES:
        raise PictureError(f"has the color mode {picture.mode}; convert it to RGB")
    clear_gray = picture.format == "PNG" and picture.mode == "L" and bits < 8 and "transparency" in picture.info
    if clear_gray:  # Pillow scales the grays to 8 bits, but not the transparent one
        raise PictureError(f"has a transparent color among grays of {bits} bits; convert it to 8-bit RGB")
    notes: tuple[str, ...] = (TURNED,) if is_turned(picture) else ()
    if not _is_srgb(picture.info):
        notes += (PROFILED,)
    shown = turn_upright(picture)
    if not shown.has_transparency_data:
        return np.asarray(shown.convert("RGB")), notes
    layers = np.asarray(shown.convert("RGBA")).astype(np.uint32)
    color, alpha = layers[..., :3], layers[..., 3:]
    over_white = (color * alpha + 255 * (255 - alpha) + 127) // 255
    return over_white.astype(np.uint8), notes + ((LAID_OVER_WHITE,) if alpha.min() < 255 else ())


def _is_srgb(info: Mapping[Any, Any]) -> bool:
    """Whether the picture is in sRGB, which is assumed if the file does not say."""
    if profile := info.get("icc_profile"):
        return b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile
    return "srgb" in info or "gamma" not in info or _SRGB_GAMMA[0] < info["gamma"] < _SRGB_GAMMA[1]
