"""Validate the images of an index, and keep them as they are where every decoder agrees on their pixels."""

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from histill.config.common import Storage
from histill.tiles.image_index import ImageRow
from histill.tiles.masks import class_pixels, normalize_mask
from histill.tiles.pixels import PROFILED, PictureError, check_png, open_picture, read_rgb
from histill.tiles.shards import Tile
from histill.tiles.sources import Unreadable, check_size, read_file, unreadable_as

READERS = 4  # threads of one task: decoding and waiting for storage both release the GIL
KEPT_FORMATS = ("JPEG", "PNG")
SAME_LEVELS = 8  # how much the pixels of two JPEG decoders may differ, of 255


def read_images(
    rows: Sequence[ImageRow], tile_px: int, mpp: float, storage: Storage, meaning: Mapping[int, int] | None = None
) -> list[Tile | Unreadable]:
    """Read each row as a tile, or the reason why it cannot be, in order. Raises InputError when the storage refuses.

    `meaning` is the class of each mask value in the whole set; None: each mask is interpreted by itself.
    """

    def attempt(row: ImageRow) -> Tile | Unreadable:
        try:
            return read_tile(row, tile_px, mpp, storage, meaning)
        except Unreadable as reason:
            return Unreadable(f"line {row.line} of the index: {reason}", code=reason.code)

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(attempt, rows))


def read_tile(
    row: ImageRow, tile_px: int, mpp: float, storage: Storage, meaning: Mapping[int, int] | None = None
) -> Tile:
    """Read one row as a tile. Raises Unreadable, naming the image or the mask and what was expected."""
    image, notes = take_image(read_file(row.uri, storage), row.uri, tile_px)
    mask, counts = None, {}
    if row.mask is not None:
        mask = normalize_mask(read_file(row.mask, storage), row.mask, row.uri, tile_px, meaning)
        counts = class_pixels(mask)
    return Tile(row.name, row.name, row.case, 0, 0, mpp, row.label, image, mask, notes, counts, row.kept)


def check_image(data: bytes, name: str, tile_px: int) -> bytes:
    """The bytes that `take_image` returns."""
    return take_image(data, name, tile_px)[0]


def take_image(data: bytes, name: str, tile_px: int) -> tuple[bytes, tuple[str, ...]]:
    """The image as tiles are stored, and the conversions that were applied (see `tiles/pixels.py`).

    An RGB JPEG or PNG that needs no conversion is kept as it is; everything else becomes an RGB PNG. Every image is
    decoded once, a JPEG by two decoders, so that a corrupt file is found here and not in the middle of training.

    Raises Unreadable when the picture is damaged, refused, or not `tile_px` by `tile_px`.
    """
    from PIL import Image

    with unreadable_as(name):
        picture = open_picture(data)
        mode, form, profile = picture.mode, picture.format, picture.info.get("icc_profile", b"")
        check_size(picture.size, name, tile_px)
        pixels, notes = read_rgb(picture, data)
        check_png(picture, data)
        if form == "JPEG":
            _check_jpeg(data, pixels if mode == "RGB" and not set(notes) - {PROFILED} else None)
        clear = "transparency" in picture.info
    if mode == "RGB" and form in KEPT_FORMATS and not clear and not set(notes) - {PROFILED}:
        return data, notes
    encoded = io.BytesIO()
    with Image.fromarray(pixels) as plain:
        plain.save(encoded, "PNG", icc_profile=profile if profile[16:20] == b"RGB " else None)
    return encoded.getvalue(), notes


def _check_jpeg(data: bytes, pixels: np.ndarray | None) -> None:
    """Raise PictureError when the stream's decoder finds damage, or its pixels differ from Pillow's `pixels`.

    It is the stricter of the two: Pillow ignores damaged entropy-coded data.
    """
    import simplejpeg

    try:
        seen = simplejpeg.decode_jpeg(data)
    except ValueError as error:
        raise PictureError(f"is a damaged JPEG ({str(error).strip()}); replace it") from None
    if pixels is not None and np.abs(seen.astype(np.int16) - pixels).max() > SAME_LEVELS:
        raise PictureError("is a JPEG that decoders read as different colors; convert it to PNG")
