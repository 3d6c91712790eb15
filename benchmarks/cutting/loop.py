"""One loop over the squares: a reader's pixels, resized where needed, through histill's encoder into a file."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.cutting.cases import QUALITY, TILE_PX, Cut

Read = Callable[[int, int, int], Any]
"""(x, y, side) in level-0 pixels -> uint8 [side, side, 3]."""


def encode_squares(cut: Cut, read: Read) -> int:
    """Write all tiles to one file, one behind the other; returns how many."""
    outer = math.ceil(cut.side)
    with (cut.out / "tiles.bin").open("wb") as file:
        for x, y in cut.corners:
            pixels = np.ascontiguousarray(read(x, y, outer))
            if outer != TILE_PX:
                with Image.fromarray(pixels) as square:
                    box = (0.0, 0.0, cut.side, cut.side)
                    pixels = np.asarray(square.resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS, box=box))
            file.write(simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorsubsampling="444"))
    return len(cut.corners)
