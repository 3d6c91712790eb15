"""What both kinds of source share: files from anywhere, and the error for a bad one."""

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.filesystems import arrow_filesystem, storage_errors


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
