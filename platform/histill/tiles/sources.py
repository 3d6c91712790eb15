"""What both kinds of source share: fetching files, and the error for a bad one."""

import contextlib
from collections.abc import Iterator

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.tiles.pixels import PictureError


class Unreadable(InputError):
    """One slide or image cannot be used; the message names it. A job skips a stated number of them."""


def read_file(uri: str, storage: Storage) -> bytes:
    """The bytes of a source. Raises Unreadable when it is not there, InputError when the storage refuses."""
    filesystem, path = arrow_filesystem(uri, storage)
    try:
        with storage_errors(uri, storage), filesystem.open_input_stream(path) as stream:
            data: bytes = stream.read()
    except FileNotFoundError:
        raise Unreadable(f"{uri} does not exist; correct the index.") from None
    return data


@contextlib.contextmanager
def unreadable_as(name: str) -> Iterator[None]:
    """Raises Unreadable, naming the file, for whatever a decoder says of a picture; its decoders are not ours."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except (Unreadable, MemoryError):
        raise
    except PictureError as refused:
        raise Unreadable(f"{name} {refused}.") from None
    except Exception as error:
        reason = "no image of a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        reason = " ".join(reason.split()) or type(error).__name__
        raise Unreadable(f"{name} cannot be decoded ({reason}); replace it.") from None


def check_size(size: tuple[int, int], name: str, tile_px: int) -> None:
    """Raises Unreadable unless an image is `tile_px` by `tile_px`."""
    if size != (tile_px, tile_px):
        raise Unreadable(
            f"{name} is {size[0]} x {size[1]} px and {tile_px} x {tile_px} was expected; "
            "set tile_px or resize the image."
        )
