"""Place the predictions of one slide's tiles on a grid."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

USUAL_SIDE = 512.0  # level-0 pixels: tiles of 256 px at 0.5 um/px, cut from a scan of 0.25 um/px
MOST_PIXELS = 2048  # along a side of the image
_OFF_GRID = 0.25  # of a tile's side: tiles further off a common grid are drawn with finer pixels
_FINER = 4


@dataclass(frozen=True)
class SlideMap:
    """The predictions of one slide's tiles, in pixels of the slide's level 0.

    `side` is a tile's side as recorded when the slide was cut. It is never inferred from the tiles' positions, since
    they may be sparse; without a record, pass it or accept `USUAL_SIDE`.
    """

    slide: str
    classes: tuple[str, ...]
    x: np.ndarray  # [N], left edges, relative to the left edge of level 0
    y: np.ndarray  # [N], top edges
    probabilities: np.ndarray  # float32 [N, K]; for a segmenter the classes' shares of a tile
    names: tuple[str, ...]  # class of each tile; several joined by |, "" for none
    side: float = USUAL_SIDE  # may be fractional
    origin: tuple[int, int] = (0, 0)  # x, y of OpenSlide's bounds, the origin of QuPath's coordinates
    segmenter: bool = False  # if so, the first class is the background
    mpp: float | None = None  # um/px of level 0

    @cached_property
    def left(self) -> np.ndarray:
        """float64 [N]: left edges in QuPath's coordinates."""
        return self.x.astype(np.float64) - self.origin[0]

    @cached_property
    def top(self) -> np.ndarray:
        """float64 [N]: top edges in QuPath's coordinates."""
        return self.y.astype(np.float64) - self.origin[1]

    def squares(self) -> np.ndarray:
        """float64 [N, 4]: left, top, right, bottom of each tile in QuPath's coordinates.

        Tiles start at whole pixels while `side` may be fractional. An edge less than a pixel from the start of other
        tiles is snapped to it, so that neighbors neither overlap nor leave a gap and no error accumulates.
        """
        edges = [_snap_to(first + self.side, np.unique(first)) for first in (self.left, self.top)]
        return np.stack([self.left, self.top, *edges], axis=1)

    @cached_property
    def pitch(self) -> float:
        """The distance between the closest two tiles: `side`, or less if they overlap by more than rounding."""
        from scipy.spatial import KDTree

        places = np.unique(np.stack([self.left, self.top], axis=1), axis=0)
        if len(places) < 2:
            return self.side
        near = float(KDTree(places).query(places, k=2, p=np.inf)[0][:, 1].min())
        if near >= self.side - 1:
            return self.side
        steps = np.concatenate([np.diff(np.unique(each)) for each in (self.left, self.top)])
        rounded = steps[abs(steps - near) <= 1]  # steps of a fractional stride
        return float(rounded.mean()) if len(rounded) else near

    def grid(self, values: np.ndarray, most: int = MOST_PIXELS) -> np.ndarray:
        """`values`, [N], as an image with NaN where there is no tile: see `image`."""
        return self.image(values, most)[0]

    def image(self, values: np.ndarray, most: int = MOST_PIXELS) -> tuple[np.ndarray, tuple[float, float, float]]:
        """`values`, [N], as an image with NaN where there is no tile, and its position: left, top, and a pixel's side.

        A tile becomes one pixel (its center if tiles overlap), or several if the tiles are not on a common grid. No
        side has more than `most` pixels: on a larger slide each pixel is the mean of the tiles that it covers.
        """
        begin = [float(each.min()) + (self.side - self.pitch) / 2 for each in (self.left, self.top)]
        offsets = [each - each.min() for each in (self.left, self.top)]
        cells = [each / self.pitch for each in offsets]
        regular = all(np.abs(each - np.rint(each)).max() < _OFF_GRID for each in cells)
        extent = max(float(each.max()) for each in offsets) + self.pitch
        pixel = max(self.pitch / (1 if regular else _FINER), extent / most)
        (across, right), (down, bottom) = (_spans(each, self.pitch, pixel, most) for each in offsets)
        sums, counts = np.zeros((2, bottom.max(), right.max()))
        for row in range((bottom - down).max()):
            for column in range((right - across).max()):
                covered = (down + row < bottom) & (across + column < right)
                place = (down + row)[covered], (across + column)[covered]
                np.add.at(sums, place, values[covered])
                np.add.at(counts, place, 1)
        drawn = np.full(sums.shape, np.nan)
        np.divide(sums, counts, out=drawn, where=counts > 0)
        return drawn, (begin[0], begin[1], pixel)


def _snap_to(ends: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """`ends`, each snapped to the nearest of `begins` (ascending) if that is less than a pixel away."""
    after = np.searchsorted(begins, ends).clip(0, len(begins) - 1)
    before = (after - 1).clip(0)
    nearest = np.where(abs(begins[after] - ends) < abs(begins[before] - ends), begins[after], begins[before])
    return np.where(abs(nearest - ends) < 1, nearest, ends)


def _spans(offsets: np.ndarray, side: float, pixel: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """First pixel, and one past the last, of each square; squares smaller than a pixel get one pixel."""
    # An edge at half a pixel is always rounded to the same side, whatever its floating-point error.
    first, last = (np.rint((offsets + moved) / pixel - 1e-3).astype(int) for moved in (0.0, side))
    first = first.clip(0, most - 1)
    return first, np.maximum(first + 1, last.clip(0, most))
