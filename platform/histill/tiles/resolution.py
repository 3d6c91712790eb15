"""Microns per pixel of a slide, and pixels of a slide per pixel of a tile."""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from histill.errors import InputError
from histill.tiles.remedies import list_remedies

if TYPE_CHECKING:
    from openslide import OpenSlide

    from histill.config.ingest_tiles import SlideSource
    from histill.tiles.slide_index import SlideRow

PLAUSIBLE_MPP = (0.01, 20.0)  # a TIFF's default of 72 dots per inch would be 353 um/px
SAME_MPP = 0.02  # allowed relative difference of two statements about a slide
SAME_SCALE = 0.01  # relative difference below which pixels are not resampled
OME_MICRONS = {"pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25_400.0}
TIFF_MICRONS = {"inch": 25_400.0, "centimeter": 10_000.0}


def resolve_mpp(
    slide: "OpenSlide", row: "SlideRow", fallback: float | None, *, remedy: str = "state it as slide_mpp"
) -> float:
    """Microns per pixel of level 0: what the slide records, else what its row declares, else `fallback`.

    It is never guessed, not even from the objective power, which does not account for the camera. If the slide's own
    records contradict each other, row or fallback decides which is right. `remedy` says how to state it.

    Raises InputError when it is stated nowhere, when the slide's pixels are not square, and when slide and row, or two
    records of the slide, disagree.
    """
    recorded = _recorded_mpp(slide, row.uri)
    stated = row.mpp if row.mpp is not None else fallback
    for (one, here), (other, there) in combinations(recorded.items(), 2):
        if not is_same_mpp(here, there):
            agreeing = [mpp for mpp in recorded.values() if stated is not None and is_same_mpp(mpp, stated)]
            if agreeing:
                return agreeing[0]
            raise InputError(
                f"slide {row.uri} contradicts itself: {here:g} um/px in {one} and {there:g} in {other}; find out "
                f"which is right and {remedy}.",
                code="mpp-contradicting",
            )
    if not recorded:
        if stated is None:
            raise InputError(
                f"slide {row.uri} does not record its microns per pixel; look it up and {remedy}.",
                code="mpp-missing",
            )
        return stated
    mpp = next(iter(recorded.values()))
    if row.mpp is not None and not is_same_mpp(mpp, row.mpp):
        raise InputError(
            f"slide {row.uri} records {mpp:g} um/px and the index declares {row.mpp:g}; "
            "correct the column mpp or leave it empty, or correct what the slide records.",
            code="mpp-contradicting",
        )
    return mpp


def is_same_mpp(one: float, other: float) -> bool:
    """Whether two statements about a slide agree, to a fiftieth."""
    return abs(one / other - 1) <= SAME_MPP


def _recorded_mpp(slide: "OpenSlide", uri: str) -> dict[str, float]:
    """The um/px that the slide records, by where it records them; implausible values are left out.

    Raises InputError for pixels that are not square.
    """
    properties = slide.properties
    vendor = properties.get("openslide.vendor")
    generic = vendor == "generic-tiff"  # then OpenSlide's values are those of the tags
    sides = {
        "its TIFF tags" if generic else "the scanner's record": (
            _number(properties.get("openslide.mpp-x")),
            _number(properties.get("openslide.mpp-y")),
        ),
        "its OME-XML": _ome_sides(properties.get("tiff.ImageDescription", ""), slide.dimensions),
    }
    if vendor == "aperio":  # in other scanners' files the tags may be those of a macro image
        sides["its TIFF tags"] = _tiff_sides(properties)
    found = {}
    for where, (across, down) in sides.items():
        if not all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in (across, down)):
            continue
        if not is_same_mpp(across, down):
            raise InputError(
                f"slide {uri} has pixels of {across:g} x {down:g} um by {where}; only square pixels can be tiled, so "
                "resample it.",
                code="slide-unreadable",
            )
        found[where] = (across + down) / 2
    return found


def _number(text: str | None) -> float:
    """Parse a number; nan if it is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _tiff_sides(properties: Mapping[str, str]) -> tuple[float, float]:
    """Microns per pixel across and down from XResolution and YResolution, nan if they are missing."""
    microns = TIFF_MICRONS.get(properties.get("tiff.ResolutionUnit", ""), math.nan)
    across, down = (_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY")
    return microns / (across or math.nan), microns / (down or math.nan)


def _ome_sides(description: str, extent: tuple[int, int]) -> tuple[float, float]:
    """Microns per pixel across and down from the OME-XML of a TIFF's first page, nan if they are missing.

    Of several images, the one with the slide's extent is used, else the first. Units as in the OME schema, 2016-06.
    """
    if "PhysicalSize" not in description:
        return math.nan, math.nan
    try:
        elements = list(ElementTree.fromstring(description).iter())
    except ElementTree.ParseError:
        return math.nan, math.nan
    images = [dict(element.items()) for element in elements if element.tag.rpartition("}")[2] == "Pixels"]
    size = tuple(map(str, extent))
    image = next((each for each in images if (each.get("SizeX"), each.get("SizeY")) == size), next(iter(images), {}))
    across, down = (
        _number(image.get(f"PhysicalSize{axis}"))
        * OME_MICRONS.get(image.get(f"PhysicalSize{axis}Unit", "µm"), math.nan)
        for axis in "XY"
    )
    return across, down


def resolve_scale(slide: "OpenSlide", row: "SlideRow", source: "SlideSource") -> tuple[float, float]:
    """Microns per pixel of level 0, and its pixels per tile pixel. Raises InputError as the two functions do."""
    remedies = list_remedies(source)
    level0_mpp = resolve_mpp(slide, row, source.slide_mpp, remedy=remedies.state_mpp)
    return level0_mpp, scale_factor(source.tile_mpp, level0_mpp, row.uri, remedy=remedies.coarser)


def scale_factor(tile_mpp: float, level0_mpp: float, uri: str, *, remedy: str = "take coarser tiles") -> float:
    """Level-0 pixels per tile pixel; exactly 1 where they differ by less than a hundredth.

    Raises InputError when the tiles would be finer than the slide, which has no detail between its pixels.
    """
    scale = tile_mpp / level0_mpp
    if scale < 1 - SAME_SCALE:
        raise InputError(
            f"slide {uri} has {level0_mpp:g} um/px and tiles of {tile_mpp:g} were asked for, which is finer; "
            f"{remedy.format(mpp=level0_mpp)}.",
            code="resolution-too-fine",
        )
    return 1.0 if abs(scale - 1) <= SAME_SCALE else scale
