"""Shared by both kinds of source: reading files, and the error for an unusable one."""

import contextlib
from collections.abc import Iterator

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.tiles.pixels import PictureError


class Unreadable(InputError):
    """A slide or image cannot be used; the message names it. A job skips up to `max_unreadable` of them."""


def read_file(uri: str, storage: Storage) -> bytes:
    """Read a source. Raises Unreadable when it does not exist, InputError when the storage refuses."""
    filesystem, path = arrow_filesystem(uri, storage)
    try:
        with storage_errors(uri, storage), filesystem.open_input_stream(path) as stream:
            data: bytes = stream.read()
    except FileNotFoundError:
        raise Unreadable(f"{uri} does not exist; correct the index.", code="source-missing") from None
    return data


@contextlib.contextmanager
def unreadable_as(name: str) -> Iterator[None]:
    """Raise Unreadable, naming the file, for whatever a third-party decoder raises for a picture."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except (Unreadable, MemoryError):
        raise
    except PictureError as refused:
        raise Unreadable(f"{name} {refused}.", code="image-unreadable") from None
    except Exception as error:
        reason = "no image of a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        reason = " ".join(reason.split()) or type(error).__name__
        raise Unreadable(f"{name} cannot be decoded ({reason}); replace it.", code="image-unreadable") from None


def check_size(size: tuple[int, int], name: str, tile_px: int) -> None:
    """Raise Unreadable unless an image is `tile_px` by `tile_px`."""
    if size != (tile_px, tile_px):
        raise Unreadable(
            f"{name} is {size[0]} x {size[1]} px and {tile_px} x {tile_px} was expected; "
            "set tile_px or resize the image.",
            code="image-unreadable",
        )
