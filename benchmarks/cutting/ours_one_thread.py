"""histill on one thread."""

from benchmarks.cutting import ours
from benchmarks.cutting.cases import Cut


def cut(squares: Cut) -> int:
    """Ingest the slide; returns the number of tiles."""
    return ours.cut(squares, threads=1)
