"""Fetch what opens a TIFF in object storage, and then the tiles that are looked at."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast

import numpy as np

from histill.errors import InputError
from histill.storage.sparse_file import SparseFile
from histill.tiles.tiff_traits import VENDORS

if TYPE_CHECKING:
    from tifffile import TiffPage

HASH = "openslide.quickhash-1"
OLD_JPEG = 6  # compression whose tables lie anywhere
Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels of a level."""


@dataclass(frozen=True)
class TiledPage:
    """Where the tiles of a page lie in the file: int64 [planes, rows, columns]; a size of 0 is a missing tile."""

    extent: tuple[int, int]  # width, height
    tile: tuple[int, int]
    places: np.ndarray
    sizes: np.ndarray

    def find_tiles(self, boxes: Iterable[Box]) -> tuple[np.ndarray, np.ndarray]:
        """Places and sizes of the tiles that the boxes touch, int64 [n] each."""
        wanted = np.zeros(self.places.shape[1:], bool)
        for left, top, right, bottom in boxes:
            wanted[_touched(top, bottom, self.tile[1]), _touched(left, right, self.tile[0])] = True
        return self.places[:, wanted].ravel(), self.sizes[:, wanted].ravel()


def _touched(begin: float, end: float, side: int) -> slice:
    """Rows or columns of tiles that an interval touches; a pixel more if it lies between two, since that is rounded."""
    margin = 0 if float(begin).is_integer() and float(end).is_integer() else 1
    return slice(max(0, math.floor((begin - margin) / side)), max(0, math.ceil((end + margin) / side)))


class TilesOnDemand:
    """The tiles of a slide's levels, fetched into its sparse copy before they are read."""

    def __init__(
        self, file: SparseFile, pages: Sequence[TiledPage], strips: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> None:
        self.file = file
        self._pages, self._strips = pages, strips

    def fetch(self, extent: tuple[int, int], boxes: Iterable[Box]) -> None:
        """Fetch the tiles that boxes of the level of this width and height touch.

        Of several pages of the same extent, which OpenSlide may choose from, all are fetched. Raises InputError as
        `SparseFile.fetch` does.
        """
        known = list(boxes)
        for page in self._pages:
            if page.extent == extent:
                self.file.fetch(*page.find_tiles(known))

    def fetch_associated(self) -> None:
        """Fetch what is not tiled: thumbnail, label and macro image."""
        for places, sizes in self._strips:
            self.file.fetch(places, sizes)


def fetch_frame(file: SparseFile) -> TilesOnDemand | None:
    """Fetch what OpenSlide reads of a TIFF to open it: all but most of the tiles.

    These are the directories with all they refer to; the first tile of each page, in which libtiff looks for the chroma
    sampling, and which some versions of OpenSlide decode; the smallest level, if quickhash-1 is computed from it. None
    for a slide whose levels are not the pages of a TIFF, or that OpenSlide does not open; the copy then has holes
    anywhere.
    """
    from openslide import OpenSlide, OpenSlideError

    pages = _read_pages(file)
    if pages is None:
        return None
    for page in pages:
        file.fetch(*np.array(page.spans, np.int64).reshape(-1, 2).T)
    tiled, vendor = [page.tiles for page in pages if page.tiles is not None], OpenSlide.detect_format(file.path)
    # In place of a tile that Aperio's scanner left out, on whatever level, OpenSlide draws one of another level.
    if vendor not in VENDORS or (vendor == "aperio" and not all(page.sizes.all() for page in tiled)):
        return None
    try:
        with OpenSlide(file.path) as slide:
            extents, hashed = slide.level_dimensions, HASH in slide.properties
    except OpenSlideError:
        return None
    if not {page.extent for page in tiled}.issuperset(extents):
        return None
    found = TilesOnDemand(file, tiled, [page.strips for page in pages if page.strips is not None])
    if hashed:
        found.fetch(extents[-1], [(0, 0, *extents[-1])])
    return found


@dataclass(frozen=True)
class _Page:
    """A page of a TIFF; spans are (first byte, length)."""

    spans: list[tuple[int, int]]  # what its directory refers to, and its first tile or strip
    tiles: TiledPage | None
    strips: tuple[np.ndarray, np.ndarray] | None  # places and sizes of what is not tiled


def _read_pages(file: SparseFile) -> list[_Page] | None:
    """The pages of a TIFF; None if it is none, or one with data that its directories do not describe."""
    import tifffile

    with file.open() as reader:
        try:
            with tifffile.TiffFile(cast("IO[bytes]", reader)) as tiff:
                pages = [_describe(page.aspage()) for page in tiff.pages]
        except InputError:
            raise
        except Exception:  # OpenSlide is the judge of what is damaged
            pages = [None]
        if reader.failed is not None:  # a parser may have gone on without these bytes
            raise reader.failed
    return None if None in pages else [page for page in pages if page is not None]


def _describe(page: "TiffPage") -> _Page | None:
    places, sizes = (np.array(each, np.int64) for each in (page.dataoffsets, page.databytecounts))
    spans = [(tag.valueoffset, tag.valuebytecount) for tag in page.tags]
    spans += [(int(places[0]), int(sizes[0]))] if len(places) else []
    if page.compression == OLD_JPEG or page.imagedepth != 1 or len(places) != len(sizes):
        return None
    if not page.is_tiled:
        return _Page(spans, None, (places, sizes))
    grid = -(-page.imagelength // page.tilelength), -(-page.imagewidth // page.tilewidth)
    if not places.size or places.size % math.prod(grid):
        return None
    extent, tile = (page.imagewidth, page.imagelength), (page.tilewidth, page.tilelength)
    return _Page(spans, TiledPage(extent, tile, places.reshape(-1, *grid), sizes.reshape(-1, *grid)), None)
