"""Images from an index: checked, and kept as they are where that is possible."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from histill.config.common import Storage
from histill.tiles.image_index import ImageRow
from histill.tiles.shards import Tile
from histill.tiles.sources import Unreadable, read_file

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

READERS = 4  # threads of one task: decoding and waiting for storage both release the interpreter
KEPT_FORMATS = ("JPEG", "PNG")


def read_images(rows: Sequence[ImageRow], tile_px: int, mpp: float, storage: Storage) -> list[Tile | Unreadable]:
    """Each row as a tile, or the reason why not, in order. Raises InputError when the storage refuses."""

    def attempt(row: ImageRow) -> Tile | Unreadable:
        try:
            return read_tile(row, tile_px, mpp, storage)
        except Unreadable as reason:
            return reason

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(attempt, rows))


def read_tile(row: ImageRow, tile_px: int, mpp: float, storage: Storage) -> Tile:
    """One row as a tile. Raises Unreadable naming the image or the mask and what was expected."""
    image = checked_image(read_file(row.uri, storage), row.uri, tile_px)
    mask = None
    if row.mask is not None:
        mask = normalised_mask(read_file(row.mask, storage), row.mask, row.uri, tile_px)
    return Tile(row.name, row.name, row.case, 0, 0, mpp, row.label, image, mask)


def checked_image(data: bytes, name: str, tile_px: int) -> bytes:
    """`data` itself when it is an RGB JPEG or PNG, else the same picture as an RGB PNG.

    The whole picture is decoded once, so that a corrupt file is found here and not in the middle of training.

    Raises Unreadable when the picture is damaged, is not `tile_px` by `tile_px`, or has more than 8 bits per
    channel.
    """
    import simplejpeg
    from PIL import Image

    picture = _decoded(data, name)
    _check_size(picture.size, name, tile_px)
    if picture.format == "JPEG":
        try:  # the stream's decoder, and stricter than Pillow, which passes over damaged entropy data
            simplejpeg.decode_jpeg(data)
        except ValueError as error:
            raise Unreadable(f"{name} is a damaged JPEG ({str(error).strip()}); replace it.") from None
    if picture.mode == "RGB" and picture.format in KEPT_FORMATS:
        return data
    if picture.mode.startswith(("I", "F")):
        raise Unreadable(f"{name} has more than 8 bits per channel (mode {picture.mode}); convert it to 8-bit RGB.")
    encoded = io.BytesIO()
    with Image.fromarray(np.asarray(picture.convert("RGB"))) as plain:
        plain.save(encoded, "PNG")
    return encoded.getvalue()


def normalised_mask(data: bytes, name: str, image: str, tile_px: int) -> bytes:
    """The mask as a PNG of class indices (uint8); a mask of 0 and 255 only becomes one of 0 and 1.

    Raises Unreadable when it is damaged, is not of its image's size, or holds colours instead of class
    indices.
    """
    from PIL import Image

    picture = _decoded(data, name)
    if picture.size != (tile_px, tile_px):
        width, height = picture.size
        raise Unreadable(
            f"the mask {name} is {width} x {height} px and its image {image} is {tile_px} x {tile_px}; "
            "make them the same size."
        )
    classes = np.asarray(picture)
    if classes.ndim == 3 and (classes[..., :3] == classes[..., :1]).all():
        classes = classes[..., 0]
    if classes.ndim != 2 or classes.dtype.kind == "f" or classes.min() < 0 or classes.max() > 255:
        raise Unreadable(
            f"the mask {name} holds colours or values above 255; give a PNG of class indices from 0 to 255."
        )
    classes = classes.astype(np.uint8)
    if np.isin(classes, (0, 255)).all():
        classes = (classes > 0).astype(np.uint8)
    encoded = io.BytesIO()
    with Image.fromarray(classes) as plain:
        plain.save(encoded, "PNG")
    return encoded.getvalue()


def _decoded(data: bytes, name: str) -> "ImageFile":
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise Unreadable(f"{name} cannot be decoded ({reason}); replace it.") from None
    return picture


def _check_size(size: tuple[int, int], name: str, tile_px: int) -> None:
    if size != (tile_px, tile_px):
        raise Unreadable(
            f"{name} is {size[0]} x {size[1]} px and {tile_px} x {tile_px} was expected; "
            "set tile_px or resize the image."
        )
