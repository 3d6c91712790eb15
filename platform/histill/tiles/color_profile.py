"""Convert the pixels of a slide to sRGB by the color profile (ICC) in its file."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from histill.config.ingest_tiles import SlideSource
from histill.tiles.remedies import list_remedies
from histill.tiles.sources import Unreadable

if TYPE_CHECKING:
    from openslide import OpenSlide

Profiled = Literal["srgb", "none"]
"""Whether a slide's pixels were converted to sRGB, or it has no profile to convert them by."""


def find_conversion(slide: "OpenSlide", uri: str, source: SlideSource) -> Callable[[np.ndarray], np.ndarray] | None:
    """What converts pixels of the slide, uint8 [H, W, 3], to sRGB; None if that was not asked for, or has no profile.

    The rendering intent is the one in the profile's header (ICC.1, 7.2.15). Threads may share a conversion.

    Raises Unreadable when the profile is damaged, or not one of RGB pixels.
    """
    from PIL import Image, ImageCms

    if source.icc is None:
        return None
    try:
        profile = slide.color_profile
        if profile is None:
            return None
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            "RGB",
            "RGB",
            ImageCms.Intent(ImageCms.getDefaultIntent(profile)),
            ImageCms.Flags.NOCACHE,  # of the last pixel, which threads would share
        )
    except (ImageCms.PyCMSError, ValueError) as error:
        raise Unreadable(
            f"slide {uri} has a color profile that cannot be used ({error}); {list_remedies(source).profile}.",
            code="slide-unreadable",
        ) from None

    def convert(pixels: np.ndarray) -> np.ndarray:
        with Image.fromarray(pixels) as picture:
            return np.asarray(transform.apply(picture))

    return convert


def describe_profile(slide: "OpenSlide", uri: str, source: SlideSource) -> Profiled | None:
    """What is done about a slide's profile; None: that was not asked for. Raises errors as `find_conversion` does."""
    if source.icc is None:
        return None
    return "none" if find_conversion(slide, uri, source) is None else "srgb"
