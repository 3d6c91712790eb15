"""histill: a whole ingest, from finding the tissue to the finished tile set."""

import os

import histill
from benchmarks.cutting.cases import MIN_TISSUE, QUALITY, TILE_PX, Cut

THREADS = len(os.sched_getaffinity(0))


def cut(squares: Cut, threads: int = THREADS) -> int:
    """Ingest the slide; returns the number of tiles."""
    source = {
        "paths": [squares.slide],
        "mpp": squares.case.mpp,
        "min_tissue": MIN_TISSUE,
        "jpeg_quality": QUALITY,
        "keep_jpeg": squares.case.keep_jpeg,
    }
    made = histill.ingest_tiles(
        output=squares.out / "tiles", tile_px=TILE_PX, slides=source, workers={"count": threads}
    )
    return made.manifest.header.tiles
