"""hs2p with tifffile and imagecodecs, its fastest reader on a CPU."""

from benchmarks.cutting import hs2p_tar
from benchmarks.cutting.cases import Cut


def cut(squares: Cut) -> int:
    """Cut the squares; returns the number of tiles."""
    return hs2p_tar.cut(squares, "tifffile")
