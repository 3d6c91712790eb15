"""Whole slides: which ones, at what resolution, and reading one."""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histill.config.common import Storage
from histill.config.ingest import SlideSource
from histill.errors import InputError
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.storage.uris import beside, is_s3, stem
from histill.tiles.sources import Unreadable, read_index

if TYPE_CHECKING:
    from openslide import OpenSlide

PLAUSIBLE_MPP = (0.01, 20.0)  # a TIFF's default of 72 dots per inch would be 353 um/px
SAME_MPP = 0.02  # relative difference of two statements about one slide
SAME_SCALE = 0.01  # relative difference below which pixels are taken as they are
BLOCK_PX = 4096  # side of what is read at once for the overview; a slide may have no small level
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class SlideRow:
    """A slide, or a region of one: `left`, `top`, `right`, `bottom` as fractions of width and height."""

    uri: str
    case: str
    mpp: float | None = None
    region: tuple[float, float, float, float] = WHOLE

    @property
    def name(self) -> str:
        """The slide's name in tile ids and in the manifest: the file's, without its extension."""
        return stem(self.uri)

    @property
    def whole(self) -> bool:
        """Whether the row takes in all of the slide."""
        return self.region == WHOLE


def slide_rows(source: SlideSource, storage: Storage) -> list[SlideRow]:
    """The slides that `source` names.

    Raises InputError for a row that cannot be understood, two slides of one name, and regions that overlap:
    their tiles could not be told apart.
    """
    if source.index is None:
        rows = [SlideRow(path, case=stem(path)) for path in source.paths]
    else:
        table = read_index(source.index, storage, needed=("slide",))
        rows = [_row(source.index, values) for values in table]
    for position, row in enumerate(rows):
        for earlier in rows[:position]:
            if earlier.name != row.name:
                continue
            if earlier.uri != row.uri:
                raise InputError(f"{earlier.uri} and {row.uri} are both named {row.name!r}; rename one of the files.")
            if _overlap(earlier.region, row.region):
                raise InputError(
                    f"slide {row.uri} is named twice with regions that overlap; give each row a region "
                    "(left, top, right, bottom) of its own or remove one."
                )
            if earlier.mpp != row.mpp:
                raise InputError(
                    f"slide {row.uri} is declared with two values of mpp, {earlier.mpp} and {row.mpp}; a slide has one."
                )
    return rows


def _row(index: str, values: dict[str, str]) -> SlideRow:
    uri = beside(index, values["slide"])
    sides = ("left", "top", "right", "bottom")
    numbers: dict[str, float | None] = {}
    for column in ("mpp", *sides):
        text = values.get(column, "")
        try:
            numbers[column] = float(text) if text else None
        except ValueError:
            raise InputError(f"{index}: {column} of slide {uri} is {text!r}; a number was expected.") from None
    given = [numbers[side] for side in sides if numbers[side] is not None]
    region = WHOLE
    if given:
        left, top, right, bottom = region = tuple(numbers[side] or 0.0 for side in sides)  # type: ignore[assignment]
        if len(given) < 4 or not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise InputError(
                f"{index}: the region of slide {uri} is {region}; fractions with 0 <= left < right <= 1 and "
                "0 <= top < bottom <= 1 were expected."
            )
    mpp = numbers["mpp"]
    if mpp is not None and not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
        raise InputError(
            f"{index}: mpp of slide {uri} is {mpp:g}; between {PLAUSIBLE_MPP[0]} and {PLAUSIBLE_MPP[1]:g} "
            "microns per pixel were expected."
        )
    return SlideRow(uri, values.get("case", "") or stem(uri), mpp, region)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])


@contextlib.contextmanager
def opened(uri: str, storage: Storage) -> Iterator["OpenSlide"]:
    """The slide, open; one in object storage is fetched into a temporary file that is removed at the end.

    Raises Unreadable when OpenSlide cannot use it, be it on opening or inside the block.
    """
    import openslide

    with contextlib.ExitStack() as stack:
        path = stack.enter_context(_local_copy(uri, storage)) if is_s3(uri) else os.path.abspath(uri)
        if not os.path.isfile(path):
            raise Unreadable(f"slide {uri} does not exist; correct its path.")
        try:
            yield stack.enter_context(openslide.OpenSlide(path))
        except openslide.OpenSlideUnsupportedFormatError:
            raise Unreadable(
                f"slide {uri} is not in a format that OpenSlide reads; convert it to a pyramidal TIFF."
            ) from None
        except openslide.OpenSlideError as error:
            raise Unreadable(f"slide {uri} is damaged ({error}); replace it.") from None


@contextlib.contextmanager
def _local_copy(uri: str, storage: Storage) -> Iterator[str]:
    import pyarrow.fs as fs

    filesystem, key = arrow_filesystem(uri, storage)
    with tempfile.TemporaryDirectory(prefix="histill-slide-") as folder:
        path = os.path.join(folder, os.path.basename(key))
        try:
            with storage_errors(uri, storage):
                fs.copy_files(key, path, source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
        except FileNotFoundError:
            raise Unreadable(f"slide {uri} does not exist; correct its path.") from None
        yield path


def slide_mpp(slide: "OpenSlide", row: SlideRow, fallback: float | None) -> float:
    """Microns per pixel of level 0: what the slide records, else what its row declares, else `fallback`.

    It is never guessed, not even from the objective power, which says nothing of the camera.

    Raises InputError when nobody states it, when the slide's pixels are not square, and when slide and row
    disagree.
    """
    recorded = _recorded_mpp(slide, row.uri)
    if recorded is None:
        stated = row.mpp if row.mpp is not None else fallback
        if stated is None:
            raise InputError(
                f"slide {row.uri} does not record its microns per pixel; "
                "look it up and set slides.slide_mpp, or the column mpp of the slide's row in the index."
            )
        return stated
    if row.mpp is not None and abs(recorded / row.mpp - 1) > SAME_MPP:
        raise InputError(
            f"slide {row.uri} records {recorded:g} um/px and the index declares {row.mpp:g}; "
            "correct the column mpp or leave it empty."
        )
    return recorded


def _recorded_mpp(slide: "OpenSlide", uri: str) -> float | None:
    sides = []
    for key in ("openslide.mpp-x", "openslide.mpp-y"):
        try:
            sides.append(float(slide.properties.get(key, "nan")))
        except ValueError:
            sides.append(math.nan)
    if not all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in sides):
        return None
    across, down = sides
    if abs(across / down - 1) > SAME_MPP:
        raise InputError(
            f"slide {uri} has pixels of {across:g} x {down:g} um; only square pixels can be tiled, so resample it."
        )
    return (across + down) / 2


def scale_to(tile_mpp: float, level0_mpp: float, uri: str) -> float:
    """Level-0 pixels per tile pixel; exactly 1 where they differ by less than a hundredth.

    Raises InputError when the tiles would be finer than the slide: there is nothing to see between its
    pixels.
    """
    scale = tile_mpp / level0_mpp
    if scale < 1 - SAME_SCALE:
        raise InputError(
            f"slide {uri} has {level0_mpp:g} um/px and tiles of {tile_mpp:g} were asked for, which is finer; "
            f"set slides.mpp to {level0_mpp:g} or more."
        )
    return 1.0 if abs(scale - 1) <= SAME_SCALE else scale


def read_square(slide: "OpenSlide", x: int, y: int, side: float, px: int) -> np.ndarray:
    """The square of `side` level-0 pixels at (x, y), as uint8 [px, px, 3] RGB.

    It is read from the coarsest level that is not coarser than asked for, and reduced by a Lanczos filter;
    the edge may lie between two pixels, so that the scale is exact.
    """
    from PIL import Image

    level = best_level(slide, side / px)
    inner = side / slide.level_downsamples[level]
    if abs(inner / px - 1) <= SAME_SCALE:
        return _rgb(slide, x, y, level, px, px)
    outer = math.ceil(inner)
    pixels = _rgb(slide, x, y, level, outer, outer)
    with Image.fromarray(pixels) as picture:
        box = (0.0, 0.0, inner, inner)
        return np.asarray(picture.resize((px, px), Image.Resampling.LANCZOS, box=box))


def overview(slide: "OpenSlide", step: float) -> np.ndarray:
    """The whole slide, `step` level-0 pixels per pixel: uint8 [ceil(H / step), ceil(W / step), 3], RGB."""
    from PIL import Image

    width, height = slide.dimensions
    level = best_level(slide, step)
    block = max(1, round(BLOCK_PX * slide.level_downsamples[level] / step))  # pixels of the overview
    shape = (math.ceil(height / step), math.ceil(width / step))
    picture = np.full((*shape, 3), 255, dtype=np.uint8)
    for top in range(0, shape[0], block):
        for left in range(0, shape[1], block):
            high, wide = min(block, shape[0] - top), min(block, shape[1] - left)
            inner = step / slide.level_downsamples[level]
            pixels = _rgb(
                slide,
                round(left * step),
                round(top * step),
                level,
                math.ceil(wide * inner),
                math.ceil(high * inner),
            )
            with Image.fromarray(pixels) as part:
                reduced = part.resize((wide, high), Image.Resampling.BOX, box=(0.0, 0.0, wide * inner, high * inner))
            picture[top : top + high, left : left + wide] = np.asarray(reduced)
    return picture


def best_level(slide: "OpenSlide", step: float) -> int:
    """The coarsest level with at most `step` level-0 pixels per pixel.

    A hundredth more is allowed, since levels are rounded to whole pixels (16.002 for 16).
    """
    fitting = [level for level, factor in enumerate(slide.level_downsamples) if factor <= step * (1 + SAME_SCALE)]
    return max(fitting, key=lambda level: slide.level_downsamples[level], default=0)


def _rgb(slide: "OpenSlide", x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]; what the scanner left out becomes glass (white)."""
    from PIL import Image

    with slide.read_region((x, y), level, (width, height)) as region:
        canvas = Image.new("RGB", region.size, (255, 255, 255))
        canvas.paste(region, mask=region.getchannel("A"))
        return np.asarray(canvas)
