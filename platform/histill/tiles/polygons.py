"""Polygons of a slide as arrays, and their picture on the grid of pixels of a tile."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np

UNKNOWN = -1
"""Kind of the pixels of which nothing is known."""
_FARTHEST = 2.0**31  # pixels; coordinates beyond are no places on a slide
_PIXELS_AT_ONCE = 2**21  # that are drawn at once, several times where polygons overlap
_NO_CORNER = (float("nan"), float("nan"))


class PolygonError(ValueError):
    """A polygon that cannot be used; the message completes a sentence that begins with where it is."""


@dataclass(frozen=True, eq=False)
class Polygons:
    """Polygons with holes, in the order in which they are drawn: the later lies over the earlier."""

    corners: np.ndarray  # float64 [M, 2], x and y in level-0 pixels; each ring is closed, and followed by a nan
    starts: np.ndarray  # int64 [P + 1], where each polygon begins in `corners`
    kinds: np.ndarray  # int64 [P], what the polygon shows: a number of the caller's, or UNKNOWN

    def __len__(self) -> int:
        return len(self.kinds)

    @cached_property
    def boxes(self) -> np.ndarray:
        """float64 [4, P]: left, top, right, bottom of each polygon."""
        if not len(self):
            return np.empty((4, 0))
        first = self.starts[:-1]
        ends = [each.reduceat(self.corners, first).T for each in (np.fmin, np.fmax)]
        return np.concatenate(ends)

    def take(self, numbers: np.ndarray) -> "Polygons":
        """Those of `numbers`, int64 [n], in that order."""
        counts = np.diff(self.starts)[numbers]
        corners = self.corners[spread_runs(self.starts[numbers], counts)]
        return Polygons(corners, np.concatenate([[0], counts.cumsum()]), self.kinds[numbers])

    def within(self, left: float, top: float, right: float, bottom: float) -> "Polygons":
        """Those whose bounding box meets a rectangle."""
        lefts, tops, rights, bottoms = self.boxes
        return self.take(np.flatnonzero((lefts < right) & (rights > left) & (tops < bottom) & (bottoms > top)))


def spread_runs(firsts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers of runs: `counts[i]` of them from `firsts[i]` on, int64."""
    ends = counts.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(firsts - ends + counts, counts)


@dataclass
class PolygonList:
    """Polygons while they are read, in compact arrays, with their classes by name."""

    classes: dict[str | None, int] = field(default_factory=dict)  # number of each; None: without a class
    _corners: "array[float]" = field(default_factory=lambda: array("d"))
    _starts: "array[int]" = field(default_factory=lambda: array("q", [0]))
    _kinds: "array[int]" = field(default_factory=lambda: array("q"))
    _rings: int = 0

    def add(self, name: str | None, rings: Iterable[Sequence[Sequence[float]]]) -> None:
        """Add a polygon: its outline, then its holes, each of them closed or not.

        Raises PolygonError for what is no list of positions.
        """
        corners = self._corners
        for ring in rings:
            begin = len(corners)
            try:
                corners.extend(chain.from_iterable(ring))
                if len(corners) - begin != 2 * len(ring):  # positions may have a height
                    del corners[begin:]
                    corners.extend(chain.from_iterable((x, y) for x, y, *_ in ring))
            except (TypeError, ValueError):
                del corners[begin:]
                raise PolygonError("has no list of positions, each of two numbers") from None
            corners.extend(corners[begin : begin + 2])  # a second closing edge has no length
            corners.extend(_NO_CORNER)
            self._rings += 1
        self._starts.append(len(corners) // 2)
        self._kinds.append(self.classes.setdefault(name, len(self.classes)))

    def finish(self) -> Polygons:
        """The polygons, whose kinds are the numbers of their classes. Raises PolygonError for impossible positions."""
        corners = np.frombuffer(self._corners, np.float64).reshape(-1, 2) if self._corners else np.empty((0, 2))
        found = Polygons(corners, np.array(self._starts), np.array(self._kinds, np.int64))
        if not (np.abs(found.boxes) < _FARTHEST).all() or np.isnan(corners).any(1).sum() > self._rings:
            raise PolygonError("holds positions that are no pixels of a slide")
        return found


def rasterize(polygons: Polygons, x: float, y: float, side: float, px: int, blank: int = UNKNOWN) -> np.ndarray:
    """Draw polygons on the `px` x `px` pixels of a square of `side` level-0 pixels with the top left corner (x, y).

    A pixel has the kind of the last polygon that its center lies in by the even-odd rule, so that holes are left out,
    and of two polygons with a common edge exactly one has it.

    Returns:
        int32 [px, px]; `blank` where there is no polygon.
    """
    drawn = np.full(px * px, blank, np.int32)
    points = (polygons.corners - (x, y)) * (px / side) - 0.5  # centers of pixels are at whole numbers
    owners = np.repeat(np.arange(len(polygons)), np.diff(polygons.starts))
    # Edges go down, so that two polygons compute the same crossings of a common one. An edge crosses the rows from the
    # upper corner, inclusive, to the lower one, exclusive; comparisons with nan, between rings, are false.
    down = points[:-1, 1] <= points[1:, 1]
    upper, lower = (np.where(down[:, None], *ends) for ends in ((points[:-1], points[1:]), (points[1:], points[:-1])))
    first, last = (np.ceil(ends[:, 1]).clip(0, px) for ends in (upper, lower))
    edges = np.flatnonzero(first < last)
    first, counts = first[edges].astype(np.int64), (last - first)[edges].astype(np.int64)
    rows = spread_runs(first, counts)
    upper, lower = upper[edges], lower[edges]
    slopes = (lower[:, 0] - upper[:, 0]) / (lower[:, 1] - upper[:, 1])
    left, top, slope = (np.repeat(each, counts) for each in (*upper.T, slopes))
    columns = np.ceil(left + (rows - top) * slope).clip(0, px).astype(np.int64)
    # In each row, the pixels from an odd crossing to the next even one are inside.
    keys = np.sort((np.repeat(owners[edges], counts) * px + rows) * (px + 1) + columns)
    lines, begins = np.divmod(keys[::2], px + 1)
    numbers, rows = np.divmod(lines, px)
    widths, begins = keys[1::2] % (px + 1) - begins, rows * px + begins
    at_once = max(1, _PIXELS_AT_ONCE // px)
    for first_span in range(0, len(begins), at_once):
        spans = slice(first_span, first_span + at_once)
        kinds = np.repeat(polygons.kinds[numbers[spans]], widths[spans])
        drawn[spread_runs(begins[spans], widths[spans])] = kinds  # of a pixel's several, the last one stays
    return drawn.reshape(px, px)
