"""The bare loop with fastslide, a reader in C++, in OpenSlide's place."""

import fastslide

from benchmarks.cutting.cases import Cut
from benchmarks.cutting.loop import encode_squares


def cut(squares: Cut) -> int:
    """Cut the squares; returns the number of tiles."""
    slide = fastslide.FastSlide.from_file_path(str(squares.slide))
    return encode_squares(squares, lambda x, y, side: slide.read_region((x, y), 0, (side, side)).numpy())
