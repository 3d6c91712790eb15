"""Local folders: whether one can be made, and removing those to which nothing was written."""

import os
import tempfile


def find_nearest_folder(path: str) -> str:
    """The innermost folder above `path`, or `path` itself, that there is."""
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def probe_folder(path: str) -> None:
    """Raise an OSError unless a folder can be made in `path`, or in the innermost folder above it that there is."""
    above = find_nearest_folder(path)
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".probe-", dir=above))
    except OSError as error:
        error.filename = above
        raise


def remove_empty_folders(path: str, *, below: str) -> None:
    """Remove the folder `path` and those above it, up to `below`, which stays, as far as nothing is in them."""
    while path != below and path.startswith(f"{below.rstrip('/')}/"):
        try:
            os.rmdir(path)
        except OSError:
            return
        path = os.path.dirname(path)
