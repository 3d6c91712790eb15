"""Microns per pixel of a slide, and pixels of a slide per pixel of a tile."""

import math
from typing import TYPE_CHECKING

from histill.errors import InputError

if TYPE_CHECKING:
    from openslide import OpenSlide

    from histill.tiles.slide_index import SlideRow

PLAUSIBLE_MPP = (0.01, 20.0)  # a TIFF's default of 72 dots per inch would be 353 um/px
SAME_MPP = 0.02  # relative difference of two statements about one slide
SAME_SCALE = 0.01  # relative difference below which pixels are taken as they are


def slide_mpp(slide: "OpenSlide", row: "SlideRow", fallback: float | None) -> float:
    """Microns per pixel of level 0: what the slide records, else what its row declares, else `fallback`.

    It is never guessed, not even from the objective power, which says nothing of the camera.

    Raises InputError when nobody states it, when the slide's pixels are not square, and when slide and row
    disagree.
    """
    recorded = _recorded_mpp(slide, row.uri)
    if recorded is None:
        stated = row.mpp if row.mpp is not None else fallback
        if stated is None:
            raise InputError(
                f"slide {row.uri} does not record its microns per pixel; "
                "look it up and set slides.slide_mpp, or the column mpp of the slide's row in the index."
            )
        return stated
    if row.mpp is not None and abs(recorded / row.mpp - 1) > SAME_MPP:
        raise InputError(
            f"slide {row.uri} records {recorded:g} um/px and the index declares {row.mpp:g}; "
            "correct the column mpp or leave it empty."
        )
    return recorded


def _recorded_mpp(slide: "OpenSlide", uri: str) -> float | None:
    sides = []
    for key in ("openslide.mpp-x", "openslide.mpp-y"):
        try:
            sides.append(float(slide.properties.get(key, "nan")))
        except ValueError:
            sides.append(math.nan)
    if not all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in sides):
        return None
    across, down = sides
    if abs(across / down - 1) > SAME_MPP:
        raise InputError(
            f"slide {uri} has pixels of {across:g} x {down:g} um; only square pixels can be tiled, so resample it."
        )
    return (across + down) / 2


def scale_to(tile_mpp: float, level0_mpp: float, uri: str) -> float:
    """Level-0 pixels per tile pixel; exactly 1 where they differ by less than a hundredth.

    Raises InputError when the tiles would be finer than the slide: there is nothing to see between its
    pixels.
    """
    scale = tile_mpp / level0_mpp
    if scale < 1 - SAME_SCALE:
        raise InputError(
            f"slide {uri} has {level0_mpp:g} um/px and tiles of {tile_mpp:g} were asked for, which is finer; "
            f"set slides.mpp to {level0_mpp:g} or more."
        )
    return 1.0 if abs(scale - 1) <= SAME_SCALE else scale
