"""Cut a slide: the grid of its tiles, those that show tissue, and their JPEGs."""

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from histill.cluster.threads import map_threads
from histill.config.ingest_tiles import SlideSource
from histill.tiles.color_profile import find_conversion
from histill.tiles.shards import Tile
from histill.tiles.slides import SlideRow, find_jpeg, find_level, read_overview, read_square, resolve_scale
from histill.tiles.tissue import find_tissue

if TYPE_CHECKING:
    from histill.tiles.annotations import SlideAnnotations
    from histill.tiles.tiled_slide import TiledSlide

OVERVIEW_PER_TILE = 16  # pixels of the overview along a tile's side
ROUNDING = 1e-9  # relative; a fraction written with fewer than nine digits means another pixel
SINGLE = 2.0**-23  # relative precision of a 32-bit float
TILES_AT_ONCE = 8  # that a thread cuts in one go
COARSEST_UM = 16.0  # microns per pixel of the overview at which small pieces of tissue are still found


def tile_grid(
    extent: tuple[int, int], region: tuple[float, float, float, float], side: float, overlap: float = 0.0
) -> list[tuple[int, int]]:
    """Top left corners (x, y) of the squares of `side` pixels that tile a region, row by row.

    The rounding of decimal fractions, or of a resolution in a TIFF's 32-bit floats, never costs a row or a column: a
    tile may extend beyond the region's edge by that much.

    Args:
        extent: width and height in pixels.
        region: left, top, right, bottom as fractions of the extent.
        side: may be fractional; corners are rounded down to whole pixels.
        overlap: pixels that neighbors share.
    """
    columns, rows = (_starts(extent[axis], region[axis], region[axis + 2], side, side - overlap) for axis in (0, 1))
    return [(x, y) for y in rows for x in columns]


def _starts(extent: int, begin: float, end: float, side: float, step: float) -> list[int]:
    """Where squares begin along one axis, one at each `step`."""
    first = math.ceil(begin * extent * (1 - ROUNDING))
    last = math.floor(end * extent * (1 + ROUNDING))
    further = (last - first) / side * (1 + SINGLE) - 1  # squares beside each other, after the first one
    count = 0 if further < 0 else 1 + math.floor(further * (side / step))
    return [first + math.floor(number * step * (1 + SINGLE)) for number in range(count)]


def tissue_fractions(mask: np.ndarray, step: float, corners: list[tuple[int, int]], side: float) -> np.ndarray:
    """float64 [n]: the fraction of tissue in each square of `side` level-0 pixels.

    Args:
        mask: bool [h, w], one value for each `step` x `step` level-0 pixels.
        corners: (x, y) of the squares, level-0 pixels.
    """
    # Summed-area table: the sum over any square is four look-ups.
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    sums[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
    near = np.array(corners, dtype=np.float64).reshape(-1, 2) / step
    limit = np.array(mask.shape[::-1])
    first = np.minimum(np.round(near).astype(int), limit - 1)
    last = np.clip(np.round(near + side / step).astype(int), first + 1, limit)
    (x0, y0), (x1, y1) = first.T, last.T
    area = (x1 - x0) * (y1 - y0)
    return np.asarray((sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]) / area)


@dataclass(frozen=True)
class Squares:
    """Squares to cut, in order: `corners` (x, y) and `side` in level-0 pixels, and the um/px of their tiles."""

    corners: tuple[tuple[int, int], ...]
    side: float  # may be fractional
    mpp: float

    def divide(self, count: int) -> "list[Squares]":
        """Runs of `count` squares each, the last one shorter."""
        starts = range(0, len(self.corners), count)
        return [replace(self, corners=self.corners[start : start + count]) for start in starts]

    def near(self, annotations: "SlideAnnotations") -> "SlideAnnotations":
        """The annotations of these squares, of which there must be one."""
        left, top = np.min(self.corners, axis=0).tolist()
        right, bottom = (np.max(self.corners, axis=0) + self.side).tolist()
        return annotations.within(left, top, right, bottom)

    def inside(self, annotations: "SlideAnnotations") -> "Squares":
        """Those whose center lies in a region of interest, if there are any."""
        if annotations.regions is None:
            return self
        kept = [
            corner
            for run in self.divide(TILES_AT_ONCE)
            for near in [run.near(annotations)]
            for corner in run.corners
            if near.includes(*corner, self.side)
        ]
        return replace(self, corners=tuple(kept))


@dataclass(frozen=True)
class Layout:
    """Where the tiles of a slide, or of a region of one, lie. Pixels are those of level 0 unless stated otherwise."""

    level0_mpp: float
    scale: float  # level-0 pixels per pixel of a tile
    side: float  # of a tile
    corners: list[tuple[int, int]]  # x, y of every square of the grid, row by row
    fractions: np.ndarray  # float64 [n], the share of tissue in each
    overview: np.ndarray  # uint8 [h, w, 3], RGB: the whole slide
    tissue: np.ndarray  # bool [h, w]
    step: float  # level-0 pixels per pixel of the overview

    def kept(self, min_tissue: float) -> "Squares":
        """The squares that show enough tissue."""
        pairs = zip(self.corners, self.fractions.tolist(), strict=True)
        corners = tuple(corner for corner, fraction in pairs if fraction >= min_tissue)
        return Squares(corners, self.side, self.level0_mpp * self.scale)

    def overview_of(self, region: tuple[float, float, float, float]) -> np.ndarray:
        """The part of the overview that shows a region, at least one pixel."""
        height, width = self.tissue.shape
        left, top = int(region[0] * width), int(region[1] * height)
        right, bottom = (math.ceil(end * size) for end, size in zip(region[2:], (width, height), strict=True))
        return self.overview[top : max(bottom, top + 1), left : max(right, left + 1)]


def lay_out(slide: "TiledSlide", row: SlideRow, source: SlideSource, tile_px: int, threads: int = 1) -> Layout:
    """The grid of a slide or region, and its tissue.

    Raises InputError when the slide's resolution is unknown, contradictory or too coarse.
    """
    level0_mpp, scale = resolve_scale(slide, row, source)
    side = tile_px * scale
    corners = tile_grid(slide.dimensions, row.region, side, source.overlap_px * scale)
    step = max(1.0, min(side / OVERVIEW_PER_TILE, COARSEST_UM / level0_mpp))
    picture = read_overview(slide, step, threads)
    tissue = find_tissue(picture)
    fractions = tissue_fractions(tissue, step, corners, side)
    return Layout(level0_mpp, scale, side, corners, fractions, picture, tissue, step)


def iter_tiles(slide: "TiledSlide", row: SlideRow, source: SlideSource, tile_px: int) -> Iterator[Tile]:
    """The tiles of one slide or region that show enough tissue, row by row. Raises InputError as `lay_out` does."""
    squares = lay_out(slide, row, source, tile_px).kept(source.min_tissue)
    yield from cut_squares(slide, row, squares, source, tile_px)


def name_tile(row: SlideRow, corner: tuple[int, int], squares: Squares, image: bytes) -> Tile:
    """The tile at a corner of one of the squares, with its encoded pixels, not labeled."""
    x, y = corner
    return Tile(f"{row.name}_{x}_{y}", row.name, row.case, x, y, squares.mpp, None, image, None, kept=row.kept)


def cut_squares(
    slide: "TiledSlide",
    row: SlideRow,
    squares: Squares,
    source: SlideSource,
    tile_px: int,
    threads: int = 1,
    annotations: "SlideAnnotations | None" = None,
) -> Generator[Tile, None, None]:
    """The tiles of some squares, in their order, cut by a number of threads; with labels and masks if annotated.

    JPEGs keep full chroma resolution (4:4:4): subsampling smears the hematoxylin of small nuclei. With
    `source.keep_jpeg` those of the slide are kept as they are; with `source.icc` its color profile is applied.

    Raises Unreadable when that profile cannot be used.
    """
    import simplejpeg

    convert = find_conversion(slide, row.uri, source)

    def cut(corner: tuple[int, int], near: "SlideAnnotations | None") -> Tile:
        x, y = corner
        image = find_jpeg(slide, x, y, squares.side, tile_px) if source.keep_jpeg else None
        if image is None:
            pixels = np.ascontiguousarray(read_square(slide, x, y, squares.side, tile_px))
            pixels = pixels if convert is None else convert(pixels)
            image = simplejpeg.encode_jpeg(pixels, source.jpeg_quality, colorspace="RGB", colorsubsampling="444")
        tile = name_tile(row, corner, squares, image)
        if near is None:
            return tile
        said = near.annotate(x, y, squares.side, tile_px)
        return replace(tile, label=said.label, mask=said.mask, class_pixels=said.class_pixels)

    def cut_run(run: Squares) -> list[Tile]:
        near = None if annotations is None else run.near(annotations)
        return [cut(corner, near) for corner in run.corners]

    level = find_level(slide, squares.side / tile_px)
    inner = math.ceil(squares.side / slide.level_downsamples[level])
    slide.fetch(level, ((x, y, inner, inner) for x, y in squares.corners))
    with closing(map_threads(cut_run, squares.divide(TILES_AT_ONCE), threads)) as cut_runs:
        for tiles in cut_runs:
            yield from tiles
