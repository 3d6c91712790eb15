"""What is cut: the slides, and the squares of each that every contender encodes."""

from dataclasses import dataclass
from pathlib import Path

TILE_PX, QUALITY, MIN_TISSUE = 512, 90, 0.25


@dataclass(frozen=True)
class Case:
    """A kind of slide, and what is cut from it."""

    mpp: float = 0.5  # um/px of the tiles; that of the slides is 0.5
    coding: str = "444"  # of the slide's tiles, as in `SlideSpec`
    tile: int = 256  # their side in pixels
    keep_jpeg: bool = False  # whether histill keeps the slide's own JPEGs


CASES = {
    "jpeg": Case(),
    "jpeg_420": Case(coding="420"),
    "jpeg_scaled": Case(mpp=0.7),
    "deflate": Case(coding="deflate"),
    "kept": Case(tile=TILE_PX, keep_jpeg=True),
}


@dataclass(frozen=True)
class Cut:
    """A slide, and the squares to cut from it: `corners` (x, y) and `side` in level-0 pixels."""

    slide: Path
    case: Case
    side: float
    corners: tuple[tuple[int, int], ...]
    out: Path


def find_squares(slide: Path, case: Case, out: Path) -> Cut:
    """The squares of a slide that show enough tissue, as histill finds them."""
    from histill.config.common import Storage
    from histill.config.ingest_tiles import SlideSource
    from histill.tiles.slide_files import open_slide
    from histill.tiles.slide_index import SlideRow
    from histill.tiles.tiling import lay_out

    source = SlideSource(paths=(str(slide),), mpp=case.mpp, min_tissue=MIN_TISSUE)
    with open_slide(str(slide), Storage()) as opened:
        layout = lay_out(opened, SlideRow(str(slide), "case"), source, TILE_PX)
    return Cut(slide, case, layout.side, layout.kept(MIN_TISSUE).corners, out)
