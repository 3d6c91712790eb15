"""From encoded bytes to pixels; the codecs release the GIL, so threads decode side by side."""

import io

import numpy as np
import simplejpeg
from PIL import Image

_FAULTS = (ValueError, OSError, SyntaxError, Image.DecompressionBombError)  # what the codecs raise


class CorruptTile(ValueError):
    """The bytes of one tile are no image of the expected size."""


def decode_image(data: bytes, size_px: int) -> np.ndarray:
    """RGB, uint8 [size_px, size_px, 3], from JPEG or PNG bytes. Raises CorruptTile."""
    try:
        if simplejpeg.is_jpeg(data):
            image = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
        else:
            with Image.open(io.BytesIO(data)) as opened:
                image = np.asarray(opened.convert("RGB"))
    except _FAULTS as error:
        raise CorruptTile(str(error) or "not an image") from None
    if image.shape != (size_px, size_px, 3):
        raise CorruptTile(f"{image.shape[1]}x{image.shape[0]} px instead of {size_px}x{size_px}")
    return image


def decode_mask(data: bytes, size_px: int) -> np.ndarray:
    """Class indices, uint8 [size_px, size_px], from PNG bytes. Raises CorruptTile."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            mask = np.asarray(opened)
    except _FAULTS as error:
        raise CorruptTile(f"mask: {error}") from None
    if mask.shape != (size_px, size_px) or mask.dtype != np.uint8:
        raise CorruptTile(f"mask: {mask.shape} {mask.dtype} instead of {(size_px, size_px)} uint8")
    return mask
