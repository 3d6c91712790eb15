"""histill on one thread with slides that it leaves to OpenSlide, as it does with formats other than TIFF."""

import histill.tiles.tiled_slide
from benchmarks.cutting import ours
from benchmarks.cutting.cases import Cut


def cut(squares: Cut) -> int:
    """Ingest the slide; returns the number of tiles."""
    histill.tiles.tiled_slide.VENDORS = ()
    return ours.cut(squares, threads=1)
