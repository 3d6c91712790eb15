"""What kinds of TIFF files have levels that are plain pages, and the traits that OpenSlide misreads silently."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tifffile import TiffFile

VENDORS = ("aperio", "generic-tiff")  # whose levels are the pages of a TIFF, without overlaps or offsets
UPRIGHT = 1  # of the tag Orientation
UNSPECIFIED = 0  # of the tag ExtraSamples


@contextlib.contextmanager
def open_tiff(path: str) -> Iterator["TiffFile"]:
    """The TIFF at `path`, which may be that of an open file without a name: tifffile itself resolves links."""
    import tifffile

    with open(path, "rb") as file, tifffile.TiffFile(file) as tiff:
        yield tiff


def find_misread(path: str) -> str | None:
    """What OpenSlide would misread in the TIFF at `path`, and what to do, as a phrase; None if nothing.

    OpenSlide keeps only the upper 8 of 16 bits per channel, applies an orientation to each tile separately, treats an
    unspecified channel beyond RGB as transparency, and reads the first page even if a later one is larger.
    """
    try:
        with open_tiff(path) as tiff:
            page = tiff.pages.first
            bits, extra = page.bitspersample, tuple(map(int, page.extrasamples))
            tag = page.tags.get("Orientation")
            orientation = UPRIGHT if tag is None else int(tag.value)
            sizes = [(each.imagewidth, each.imagelength) for each in (page.aspage() for page in tiff.pages)]
    except Exception:  # OpenSlide reports damage
        return None
    if bits > 8:
        return f"has {bits} bits per channel; convert it to 8-bit RGB."
    if orientation != UPRIGHT:
        return f"is stored turned or mirrored (TIFF orientation {orientation}); save it upright."
    if UNSPECIFIED in extra:
        return "has a channel of unspecified meaning beside its colors; convert it to RGB."
    (width, height), (most_wide, most_high) = sizes[0], max(sizes, key=lambda size: size[0] * size[1])
    if most_wide * most_high > width * height:
        return (
            f"has a page of {most_wide} x {most_high} px behind a first one of {width} x {height}, and the first "
            "is read; put the largest first."
        )
    return None
