"""What is cut: the slides, and the squares of each that every contender encodes."""

from dataclasses import dataclass
from pathlib import Path

TILE_PX, QUALITY, MIN_TISSUE = 512, 90, 0.25
CASES = {"jpeg": 0.5, "jpeg_scaled": 0.7, "deflate": 0.5}
"""Microns per pixel of the tiles: those of the slide, or coarser ones; slides of JPEG tiles, and of others."""


@dataclass(frozen=True)
class Cut:
    """A slide, and the squares to cut from it: `corners` (x, y) and `side` in level-0 pixels."""

    slide: Path
    mpp: float
    side: float
    corners: tuple[tuple[int, int], ...]
    out: Path


def find_squares(slide: Path, mpp: float, out: Path) -> Cut:
    """The squares of a slide that show enough tissue, as histill finds them."""
    from histill.config.common import Storage
    from histill.config.ingest_tiles import SlideSource
    from histill.tiles.slide_files import open_slide
    from histill.tiles.slide_index import SlideRow
    from histill.tiles.tiling import lay_out

    source = SlideSource(paths=(str(slide),), mpp=mpp, min_tissue=MIN_TISSUE)
    with open_slide(str(slide), Storage()) as opened:
        layout = lay_out(opened, SlideRow(str(slide), "case"), source, TILE_PX)
    return Cut(slide, mpp, layout.side, layout.kept(MIN_TISSUE).corners, out)
