"""The bare loop: OpenSlide's read_region and an encoder, on one thread."""

import numpy as np
from openslide import OpenSlide

from benchmarks.cutting.cases import Cut
from benchmarks.cutting.loop import encode_squares


def cut(squares: Cut) -> int:
    """Cut the squares; returns the number of tiles."""
    with OpenSlide(squares.slide) as slide:
        return encode_squares(
            squares, lambda x, y, side: np.asarray(slide.read_region((x, y), 0, (side, side)).convert("RGB"))
        )
