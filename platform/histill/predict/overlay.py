"""Write a segmenter's probabilities for a slide as an OME-TIFF, which viewers lay over the slide.

The file is as the OME specification 6.3 has sub-resolutions: a pyramid below each image, with the size of a pixel
(https://ome-model.readthedocs.io/en/stable/ome-tiff/specification.html).
"""

import io
from math import ceil
from typing import Any

import numpy as np

from histill.predict.slide_pixels import SlidePixels
from histill.predict.slides import PredictedSlide
from histill.storage.control import write_bytes
from histill.storage.uris import join

OVERLAYS, OVERLAY_ENDINGS = "overlays", (".ome.tif",)
_TILE_PX = 512
_CERTAIN = 255  # of a pixel: a probability of 1


def write_overlay(slide: PredictedSlide) -> bool:
    """Write the slide's probabilities; False if no tile could be decoded.

    Raises InputError when some predictions are missing.
    """
    assert slide.overlay_mpp is not None
    places = slide.find_places()
    if places is None:
        return False
    pixels = slide.read_pixels(places)
    factor = max(1, round(slide.overlay_mpp / pixels.mpp))
    left, top = (round(each / pixels.scale) for each in slide.origin)
    if slide.record is None:
        right, bottom = (int(each.max()) + pixels.tile_px for each in (pixels.columns, pixels.rows))
    else:
        right, bottom = (ceil(each / pixels.scale) for each in (slide.record.width, slide.record.height))
    image = read_probabilities(pixels, (left, top, right, bottom), factor)
    found = encode_overlay(image, slide.classes[1:], pixels.mpp * factor)
    write_bytes(join(slide.uri, OVERLAYS, slide.file + OVERLAY_ENDINGS[0]), found, slide.storage)
    return True


def read_probabilities(pixels: SlidePixels, area: tuple[int, int, int, int], factor: int) -> np.ndarray:
    """The classes' probabilities but the background's, uint8 [K - 1, H, W], 255 for 1: means of `factor` x `factor`.

    A boundary's probability counts for the most probable of the classes that it bounds. Where no tile was predicted,
    all are 0.

    Args:
        area: left, top, right and bottom, in pixels.
    """
    left, top, right, bottom = area
    height, width = ceil((bottom - top) / factor), ceil((right - left) / factor)
    image = np.zeros((len(pixels.outputs.scored) - 1, height, width), np.uint8)
    side = _TILE_PX * factor
    for x in range(0, width, _TILE_PX):
        for y in range(0, height, _TILE_PX):
            place = left + x * factor, top + y * factor, side, side
            if not pixels.has_tiles(*place):
                continue
            means = _merge_boundary(pixels, pixels.window(*place))
            means = means.reshape(len(image), _TILE_PX, factor, _TILE_PX, factor).mean((2, 4))
            part = image[:, y : y + _TILE_PX, x : x + _TILE_PX]
            part[:] = np.rint(_CERTAIN * means)[:, : part.shape[1], : part.shape[2]]
    return image


def encode_overlay(image: np.ndarray, classes: tuple[str, ...], mpp: float) -> bytes:
    """A pyramidal OME-TIFF of an image, uint8 [K - 1, H, W], whose channels have the names of the classes."""
    import tifffile

    levels = [image]
    while max(levels[-1].shape[1:]) > _TILE_PX:
        levels.append(_halve(levels[-1]))
    about = {
        "axes": "CYX",
        "Channel": {"Name": list(classes)},
        "PhysicalSizeX": mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm",
    }
    how: dict[str, Any] = {"tile": (_TILE_PX, _TILE_PX), "compression": "zlib", "photometric": "minisblack"}
    file = io.BytesIO()
    with tifffile.TiffWriter(file, ome=True, bigtiff=True) as writer:
        for number, level in enumerate(levels):
            size = 1e4 / (mpp * 2**number)  # pixels per centimeter
            first: dict[str, Any] = (
                {"subifds": len(levels) - 1, "metadata": about} if number == 0 else {"subfiletype": 1}
            )
            writer.write(level, resolution=(size, size), resolutionunit="CENTIMETER", **how, **first)
    return file.getvalue()


def _merge_boundary(pixels: SlidePixels, probabilities: np.ndarray) -> np.ndarray:
    """float32 [K - 1, H, W]: those of the classes that decisions choose from, without the background."""
    if not pixels.outputs.boundary:
        return probabilities[1:]
    classes = probabilities[1:-1].copy()
    np.put_along_axis(classes, classes.argmax(0)[None], classes.max(0) + probabilities[-1], axis=0)
    return classes


def _halve(level: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels, uint8 [C, H / 2, W / 2], rounded up."""
    padded = np.pad(level, ((0, 0), *((0, side % 2) for side in level.shape[1:])), mode="edge").astype(np.uint16)
    return (
        (padded[:, ::2, ::2] + padded[:, 1::2, ::2] + padded[:, ::2, 1::2] + padded[:, 1::2, 1::2] + 2) // 4
    ).astype(np.uint8)
