"""Explain why a slide yielded no tiles."""

import numpy as np

from histill.config.ingest_tiles import SlideSource
from histill.tiles.remedies import list_remedies
from histill.tiles.slide_index import SlideRow
from histill.tiles.tiling import Layout
from histill.tiles.tissue import CHROMA_BOUNDS, DARKEST

MOST = 0.5  # share of dark pixels above which a picture is called black
GLASS = 200  # brightest channel above which a colorless pixel is empty glass
COLORED = 0.01  # share of colored pixels without tissue, or of gray ones, above which they are the reason


def explain_empty(row: SlideRow, extent: tuple[int, int], layout: Layout, source: SlideSource, tile_px: int) -> str:
    """One sentence with the slide or region, the reason why it has no tile, and what to do.

    Args:
        extent: width and height of level 0.
    """
    region = "" if row.whole else " (region {:g}, {:g}, {:g}, {:g})".format(*row.region)
    name = f"slide {row.uri}{region}"
    remedies = list_remedies(source)
    left, top, right, bottom = row.region
    wide, high = (right - left) * extent[0], (bottom - top) * extent[1]
    if not layout.corners:
        return (
            f"{name} is {wide:.0f} x {high:.0f} px of {layout.level0_mpp:g} um, smaller than a tile, which takes "
            f"{layout.side:.0f} x {layout.side:.0f} of them ({tile_px} px of {source.tile_mpp:g} um); "
            f"{remedies.smaller_tile}."
        )
    most = float(layout.fractions.max())
    if most > 0:
        return (
            f"{name} has no tile of {tile_px} px with {source.min_tissue:.0%} tissue, the most is {most:.1%}; "
            f"{remedies.less_tissue}."
        )
    look = _look_of(layout.overview_of(row.region))
    return f"{name} shows no tissue: {look}; {remedies.no_tissue}."


def _look_of(picture: np.ndarray) -> str:
    """Describe what an overview without tissue, uint8 [H, W, 3], looks like."""
    brightest = picture.max(axis=-1).astype(int)
    chroma = brightest - picture.min(axis=-1)
    if (chroma > CHROMA_BOUNDS[0]).mean() > COLORED:
        return "what is colored on it is pale, in specks, or blue or green as ink is"
    if (brightest <= DARKEST).mean() > MOST:
        return "it is black"
    if (brightest < GLASS).mean() > COLORED:
        return "it is gray, and tissue is told from glass by its color"
    return "it is blank"
