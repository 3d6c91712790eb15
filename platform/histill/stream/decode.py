"""Decode tiles and masks to pixels; the codecs release the GIL, so threads decode in parallel."""

import errno
import io

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image

from histill.stream.prepare_tile import downscale_area, reduction_for
from histill.tiles.pixels import open_picture, read_rgb

__all__ = [
    "CorruptTile",
    "compress_mask",
    "decode_image",
    "decode_mask",
    "decompress_mask",
    "downscale_area",
    "reduction_for",
]
_FAULTS = (ValueError, OSError, SyntaxError, Image.DecompressionBombError)  # what the codecs raise


class CorruptTile(ValueError):
    """A tile's bytes do not decode to an image of the expected size."""


def decode_image(
    data: bytes | memoryview, size_px: int, reduction: int = 1, *, into: np.ndarray | None = None
) -> np.ndarray:
    """Decode a tile of `size_px`, JPEG or PNG, to RGB, uint8 [size_px / reduction, size_px / reduction, 3].

    A JPEG is reduced by `reduction` (1, 2, 4 or 8) in the DCT domain, which saves most of the inverse transforms; a PNG
    is decoded, then downscaled. A JPEG is decoded right into `into` (C-contiguous), which is returned, if it is given.
    Raises CorruptTile.
    """
    try:
        if simplejpeg.is_jpeg(data):
            height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=True)
            _check(height, width, size_px)
            side = size_px // reduction
            image = simplejpeg.decode_jpeg(
                data, colorspace="RGB", strict=True, min_height=side, min_width=side, buffer=into
            )
            return image if into is None else into
        with open_picture(data) as picture:
            image, _ = read_rgb(picture, data)
    except CorruptTile:
        raise
    except _FAULTS as error:
        raise _corrupt(error, "") from None
    _check(image.shape[0], image.shape[1], size_px)
    return downscale_area(image, size_px // reduction)


def decode_mask(data: bytes | memoryview, size_px: int) -> np.ndarray:
    """Decode a PNG mask to class indices, uint8 [size_px, size_px]. Raises CorruptTile."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            mask = np.asarray(opened)
    except _FAULTS as error:
        raise _corrupt(error, "mask: ") from None
    if mask.shape != (size_px, size_px) or mask.dtype != np.uint8:
        raise CorruptTile(f"mask: {mask.shape} {mask.dtype} instead of {(size_px, size_px)} uint8")
    return mask


def compress_mask(mask: np.ndarray) -> bytes:
    """Compress class indices, uint8 [H, W], for another process: zstd is undone in a thirtieth of the time of a PNG."""
    return bytes(pa.compress(np.ascontiguousarray(mask), "zstd", asbytes=True))


def decompress_mask(data: bytes | memoryview, side: int) -> np.ndarray:
    """The class indices, uint8 [side, side], that `compress_mask` was given."""
    return np.frombuffer(pa.decompress(data, side * side, "zstd", asbytes=True), np.uint8).reshape(side, side)


def _check(height: int, width: int, size_px: int) -> None:
    if (height, width) != (size_px, size_px):
        raise CorruptTile(f"{width}x{height} px instead of {size_px}x{size_px}")


def _corrupt(error: Exception, what: str) -> CorruptTile:
    """Convert a codec's error to CorruptTile. Raises MemoryError when memory ran out, since the tile may be sound."""
    said = str(error).lower()  # the first message is libjpeg's, the second Pillow's
    if "insufficient memory" in said or "out of memory" in said or getattr(error, "errno", None) == errno.ENOMEM:
        raise MemoryError(f"no memory is left to decode a tile ({error})") from None
    return CorruptTile(f"{what}{error or 'not an image'}")
