"""Decode the tiles of a TIFF without OpenSlide's drawing, which costs more than the decoding: the same pixels."""

import math
import os
import sys
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
import tifffile
from openslide import OpenSlide

from histill.tiles.tiff_traits import VENDORS, open_tiff

if TYPE_CHECKING:
    from PIL.Image import Image

    from histill.tiles.tiles_on_demand import TilesOnDemand

RGB, YCBCR = 2, 6  # TIFF's photometric interpretations
PLAIN, JPEG, DEFLATE = (1,), (7,), (8, 32946)  # and its compressions
KEPT_BYTES = 64 * 2**20  # of decoded tiles that the next squares may need, too
CHECKED_PX = 512
_ADOBE = {RGB: 0, YCBCR: 1}  # how JPEG's marker of Adobe calls them
_ALPHA = 24 if sys.byteorder == "little" else 0  # where it is in a pixel of four bytes
_APP0, _APP15, _COMMENT, _SCAN = 0xE0, 0xEF, 0xFE, 0xDA  # markers


@dataclass(frozen=True)
class TiledLevel:
    """A level that consists of tiles; `places` and `sizes` are int64 [rows * columns], in bytes of the file."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    places: np.ndarray
    sizes: np.ndarray
    decode: Callable[[bytes], np.ndarray]  # the bytes of a tile -> uint8 [tile_height, tile_width, 3], or ValueError
    head: bytes | None  # of JPEGs: what each begins with, its color space and shared tables

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return -(-self.width // self.tile_width)


class TiledSlide(OpenSlide):
    """A slide whose pixels are read from its tiles where they are those that OpenSlide would give.

    Everything else is read by OpenSlide: other formats and compressions, positions between two pixels of a level, what
    the scanner left out, and what cannot be decoded. The first pixels of each level are read both ways and compared.
    Threads may read concurrently.

    Of a file with holes, `on_demand` fetches what is read before it is read, here and by OpenSlide.
    """

    def __init__(self, path: str, on_demand: "TilesOnDemand | None" = None) -> None:
        super().__init__(path)
        self._on_demand = on_demand
        self._factors, self._extents = super().level_downsamples, self.level_dimensions
        self._levels: dict[int, TiledLevel] = {}
        if self.properties.get("openslide.vendor") in VENDORS:
            self._levels = _find_levels(path, self.level_dimensions)
        self._file = os.open(path, os.O_RDONLY) if self._levels else None
        self._checked: set[int] = set()
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of each level; OpenSlide's own property asks the library each time."""
        return self._factors

    def close(self) -> None:
        """Close the slide; no thread may still read from it."""
        super().close()
        if self._file is not None:
            os.close(self._file)
        self._file, self._levels = None, {}

    def fetch(self, level: int, regions: Iterable[tuple[int, int, int, int]]) -> None:
        """Fetch the tiles of regions that are going to be read: x and y of level 0, width and height of the level.

        Fetching many at once takes fewer requests. What is read is fetched in any case.
        """
        if self._on_demand is None or not 0 <= level < len(self._extents):  # which OpenSlide refuses
            return
        factor = self._factors[level]
        places = ((x / factor, y / factor, width, height) for x, y, width, height in regions)
        boxes = ((left, top, left + width, top + height) for left, top, width, height in places)
        self._on_demand.fetch(self._extents[level], boxes)

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> "Image":
        """As OpenSlide's own."""
        self.fetch(level, [(*location, *size)])
        return super().read_region(location, level, size)

    @property
    def associated_images(self) -> "Mapping[str, Image]":
        """As OpenSlide's own."""
        if self._on_demand is not None:
            self._on_demand.fetch_associated()
        return super().associated_images

    def read_rgb(self, x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        """uint8 [height, width, 3] of a level from (x, y) on, in level-0 pixels; what was not scanned is white."""
        self.fetch(level, [(x, y, width, height)])
        pixels = self._read_tiles(x, y, level, width, height)
        if pixels is not None and level not in self._checked:
            if self._agrees(pixels, x, y, level):
                self._checked.add(level)
            else:
                self._levels.pop(level, None)
                pixels = None
        return self._draw(x, y, level, width, height) if pixels is None else pixels

    def read_jpeg(self, x: int, y: int, level: int, px: int) -> bytes | None:
        """The slide's own JPEG of the `px` x `px` pixels of a level at (x, y), in level-0 pixels, with all its tables.

        None if they are not exactly one tile of the level, or `read_rgb` would not decode it.
        """
        found = self._levels.get(level)
        if found is None or found.head is None or (found.tile_width, found.tile_height) != (px, px):
            return None
        left, top = x / self._factors[level], y / self._factors[level]
        if left % px or top % px or left + px > found.width or top + px > found.height:
            return None
        if level not in self._checked:
            self.read_rgb(x, y, level, px, px)
        index = int(top // px) * found.columns + int(left // px)
        if level not in self._checked or self._tile(level, found, index, keep=False) is None:
            return None
        return _complete(self._read(found, index), found.head)

    def _agrees(self, pixels: np.ndarray, x: int, y: int, level: int) -> bool:
        """Whether OpenSlide gives the same pixels, in the middle of what was read at (x, y)."""
        factor = self._factors[level]
        high, wide = (min(side, CHECKED_PX) for side in pixels.shape[:2])
        top, left = ((side - part) // 2 for side, part in zip(pixels.shape[:2], (high, wide), strict=True))
        if not float(factor).is_integer():  # then only (x, y) is sure to be a pixel of both levels
            top = left = 0
        drawn = self._draw(x + int(left * factor), y + int(top * factor), level, wide, high)
        return np.array_equal(pixels[top : top + high, left : left + wide], drawn)

    def _draw(self, x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        """`read_rgb` by OpenSlide."""
        import cv2
        from PIL import Image

        with self.read_region((x, y), level, (width, height)) as region:
            pixels = np.asarray(region)
            if np.bitwise_and.reduce(pixels.view(np.uint32), axis=None) >> _ALPHA == 255:
                return cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB)  # an eighth of what compositing costs
            canvas = Image.new("RGB", region.size, (255, 255, 255))
            canvas.paste(region, mask=region.getchannel("A"))
            return np.asarray(canvas)

    def _read_tiles(self, x: int, y: int, level: int, width: int, height: int) -> np.ndarray | None:
        """`read_rgb` from the tiles of the level; None where OpenSlide has to."""
        found = self._levels.get(level)
        if found is None:
            return None
        factor = self._factors[level]
        left, top = x / factor, y / factor
        if not (left.is_integer() and top.is_integer()):
            return None
        left, top = int(left), int(top)
        if left < 0 or top < 0 or left + width > found.width or top + height > found.height:
            return None
        pixels = np.empty((height, width, 3), np.uint8)
        across, down = found.tile_width, found.tile_height
        for row in range(top // down, -(-(top + height) // down)):
            first, last = max(top, row * down), min(top + height, (row + 1) * down)
            for column in range(left // across, -(-(left + width) // across)):
                begin, end = max(left, column * across), min(left + width, (column + 1) * across)
                whole = (last - first, end - begin) == (down, across)
                tile = self._tile(level, found, row * found.columns + column, keep=not whole)
                if tile is None:
                    return None
                part = tile[first - row * down : last - row * down, begin - column * across : end - column * across]
                pixels[first - top : last - top, begin - left : end - left] = part
        return pixels

    def _tile(self, number: int, level: TiledLevel, index: int, *, keep: bool) -> np.ndarray | None:
        """A decoded tile of the level `number`; None if there is none, or it is damaged."""
        key = number, index
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        try:
            data = self._read(level, index)
            if not data:
                return None
            tile = level.decode(data)
        except (ValueError, IndexError, OSError, zlib.error):
            return None
        if tile.shape != (level.tile_height, level.tile_width, 3):
            return None
        if keep:
            with self._lock:
                self._kept[key] = tile
                while len(self._kept) * tile.nbytes > KEPT_BYTES:
                    self._kept.popitem(last=False)
        return tile

    def _read(self, level: TiledLevel, index: int) -> bytes:
        """A tile as it is stored; empty if the scanner left it out."""
        assert self._file is not None
        place, size = int(level.places[index]), int(level.sizes[index])
        if self._on_demand is not None:
            self._on_demand.file.fetch_range(place, size)
        return os.pread(self._file, size, place)


def _find_levels(path: str, extents: tuple[tuple[int, int], ...]) -> dict[int, TiledLevel]:
    """The levels that can be decoded here, by their number in OpenSlide: the pages with these widths and heights."""
    try:
        with open_tiff(path) as tiff:
            pages = [page.aspage() for page in tiff.pages]
            tiled = {(page.imagewidth, page.imagelength): page for page in reversed(pages) if page.is_tiled}
    except Exception:  # OpenSlide is the judge of what is damaged
        return {}
    levels = {}
    for number, extent in enumerate(extents):
        page = tiled.get(extent)
        decode = None if page is None else _find_decoder(page)
        if page is not None and decode is not None:
            places, sizes = (np.array(each, np.int64) for each in (page.dataoffsets, page.databytecounts))
            head = _head(page) if page.compression in JPEG else None
            levels[number] = TiledLevel(*extent, page.tilewidth, page.tilelength, places, sizes, decode, head)
    return levels


def _find_decoder(page: tifffile.TiffPage) -> Callable[[bytes], np.ndarray] | None:
    """What decodes a tile of a page; None if nothing here does."""
    if page.planarconfig != 1 or page.samplesperpixel != 3 or page.bitspersample != 8 or page.photometric not in _ADOBE:
        return None
    shape = page.tilelength, page.tilewidth, 3
    if page.compression in JPEG:
        head = _head(page)
        # into a buffer, so that a JPEG that says it is larger is refused
        return lambda data: simplejpeg.decode_jpeg(_complete(data, head), buffer=np.empty(shape, np.uint8))
    if page.photometric != RGB or page.predictor not in (1, 2):
        return None
    summed = page.predictor == 2  # each pixel is stored as the difference to the one on its left

    def take(data: bytes) -> np.ndarray:
        pixels = np.frombuffer(data, np.uint8).reshape(shape)
        return pixels.cumsum(axis=1, dtype=np.uint8) if summed else pixels

    if page.compression in PLAIN:
        return None if summed else take
    if page.compression in DEFLATE:
        return lambda data: take(zlib.decompressobj().decompress(data, math.prod(shape)))
    return None


def _head(page: tifffile.TiffPage) -> bytes:
    """What each JPEG of a page is to begin with: the color space, in Adobe's marker, and the shared tables."""
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([_ADOBE[page.photometric]])
    return b"\xff\xd8" + adobe + (page.jpegtables or b"")[2:-2]


def _complete(data: bytes, head: bytes) -> bytes:
    """A JPEG of its own from an abbreviated one; the color space is the page's, whatever the JPEG says itself."""
    parts, at = [head], 2
    while (marker := data[at + 1]) != _SCAN:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if not _APP0 <= marker <= _APP15 and marker != _COMMENT:
            parts.append(data[at:end])
        at = end
    return b"".join((*parts, data[at:]))
