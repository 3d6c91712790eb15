"""Draw what was cut: the slide, the tissue that was found, and the tiles that were kept."""

import io

import numpy as np
from PIL import Image, ImageDraw

from histill.tiles.slide_index import WHOLE, SlideRow
from histill.tiles.tiling import Layout, Squares

LONGEST_PX = 800
LARGEST_ZOOM = 3.0  # of the overview, for small slides
SMALL_TILE_PX = 16  # in the thumbnail; the lines of smaller tiles are drawn fainter
GRID = (20, 60, 200)
TISSUE = (0, 230, 90)
REGION = (0, 0, 0)
COLORS = 128  # of the palette, which makes the file a quarter as large


def draw_thumbnail(row: SlideRow, layout: Layout, kept: Squares) -> bytes:
    """A PNG of the whole slide: tissue has a green edge, kept tiles have a blue one and a region a black one."""
    height, width = layout.tissue.shape
    zoom = min(LARGEST_ZOOM, LONGEST_PX / max(height, width))
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    with Image.fromarray(layout.overview) as overview:
        picture = np.array(overview.resize(size, Image.Resampling.BICUBIC))
    with Image.fromarray(layout.tissue) as mask:
        tissue = np.array(mask.resize(size, Image.Resampling.NEAREST))
    scale = np.array(size) / (width * layout.step, height * layout.step)
    with Image.fromarray(picture) as plain, plain.copy() as drawn:
        pen = ImageDraw.Draw(drawn)
        for corner in kept.corners:
            near = np.array(corner) * scale
            pen.rectangle([*near, *(near + layout.side * scale - 1).clip(near)], outline=GRID)
        drawn.paste(TISSUE, mask=Image.fromarray(_edge_of(tissue)))
        if row.region != WHOLE:
            left, top, right, bottom = row.region
            extent = np.array(size) - 1
            pen.rectangle([*((left, top) * extent), *((right, bottom) * extent)], outline=REGION)
        file = io.BytesIO()
        # Lines of many small tiles would hide the slide.
        shown = Image.blend(plain, drawn, min(1.0, max(0.4, layout.side * scale[0] / SMALL_TILE_PX)))
        shown.quantize(COLORS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, "PNG")
    return file.getvalue()


def _edge_of(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask, bool [H, W], that touch one outside it."""
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
