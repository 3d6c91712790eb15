"""Read the pixels of a whole slide; also re-exports the other functions for slides, which are used together."""

import math
from typing import TYPE_CHECKING

import numpy as np

from histill.cluster.threads import map_threads
from histill.tiles.resolution import PLAUSIBLE_MPP as PLAUSIBLE_MPP
from histill.tiles.resolution import SAME_MPP as SAME_MPP
from histill.tiles.resolution import SAME_SCALE as SAME_SCALE
from histill.tiles.resolution import resolve_mpp as resolve_mpp
from histill.tiles.resolution import resolve_scale as resolve_scale
from histill.tiles.resolution import scale_factor as scale_factor
from histill.tiles.slide_files import open_slide as open_slide
from histill.tiles.slide_index import WHOLE as WHOLE
from histill.tiles.slide_index import SlideRow as SlideRow
from histill.tiles.slide_index import slide_rows as slide_rows

if TYPE_CHECKING:
    from openslide import OpenSlide

    from histill.tiles.tiled_slide import TiledSlide

BLOCK_PX = 4096  # side of the blocks read for the overview, since a slide may have no small level


def read_square(slide: "TiledSlide", x: int, y: int, side: float, px: int) -> np.ndarray:
    """Read the square of `side` level-0 pixels at (x, y), as uint8 [px, px, 3] RGB.

    It is read from the coarsest level that is fine enough, and downscaled with a Lanczos filter. Its edge may lie
    between two pixels, so that the scale is exact.
    """
    from PIL import Image

    level = find_level(slide, side / px)
    inner = side / slide.level_downsamples[level]
    if abs(inner / px - 1) <= SAME_SCALE:
        return slide.read_rgb(x, y, level, px, px)
    outer = math.ceil(inner)
    pixels = slide.read_rgb(x, y, level, outer, outer)
    with Image.fromarray(pixels) as picture:
        box = (0.0, 0.0, inner, inner)
        return np.asarray(picture.resize((px, px), Image.Resampling.LANCZOS, box=box))


def find_jpeg(slide: "TiledSlide", x: int, y: int, side: float, px: int) -> bytes | None:
    """The slide's own JPEG of the pixels that `read_square` reads; None if it has none of exactly these."""
    level = find_level(slide, side / px)
    return slide.read_jpeg(x, y, level, px) if side == px * slide.level_downsamples[level] else None


def read_overview(slide: "TiledSlide", step: float, threads: int = 1) -> np.ndarray:
    """Read the whole slide at `step` level-0 pixels per pixel: uint8 [ceil(H / step), ceil(W / step), 3], RGB."""
    from PIL import Image

    width, height = slide.dimensions
    level = find_level(slide, step)
    inner = step / slide.level_downsamples[level]
    block = max(1, round(BLOCK_PX * slide.level_downsamples[level] / step))  # pixels of the overview
    shape = (math.ceil(height / step), math.ceil(width / step))

    def reduce(corner: tuple[int, int]) -> np.ndarray:
        top, left = corner
        high, wide = min(block, shape[0] - top), min(block, shape[1] - left)
        extent = math.ceil(wide * inner), math.ceil(high * inner)
        pixels = slide.read_rgb(round(left * step), round(top * step), level, *extent)
        with Image.fromarray(pixels) as part:
            box = (0.0, 0.0, wide * inner, high * inner)
            return np.asarray(part.resize((wide, high), Image.Resampling.BOX, box=box))

    slide.fetch(level, [(0, 0, *slide.level_dimensions[level])])
    picture = np.empty((*shape, 3), dtype=np.uint8)
    corners = [(top, left) for top in range(0, shape[0], block) for left in range(0, shape[1], block)]
    for (top, left), reduced in zip(corners, map_threads(reduce, corners, threads), strict=True):
        picture[top : top + block, left : left + block] = reduced
    return picture


def find_level(slide: "OpenSlide", step: float) -> int:
    """The coarsest level with at most `step` level-0 pixels per pixel.

    1 % more is allowed, since levels are rounded to whole pixels (16.002 for 16).
    """
    fitting = [level for level, factor in enumerate(slide.level_downsamples) if factor <= step * (1 + SAME_SCALE)]
    return max(fitting, key=lambda level: slide.level_downsamples[level], default=0)
