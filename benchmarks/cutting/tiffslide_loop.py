"""The bare loop with tiffslide, a reader on tifffile and imagecodecs, in OpenSlide's place."""

from tiffslide import TiffSlide

from benchmarks.cutting.cases import Cut
from benchmarks.cutting.loop import encode_squares


def cut(squares: Cut) -> int:
    """Cut the squares; returns the number of tiles."""
    with TiffSlide(squares.slide) as slide:
        return encode_squares(squares, lambda x, y, side: slide.read_region((x, y), 0, (side, side), as_array=True))
