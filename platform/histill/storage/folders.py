"""Local folders: check whether one can be created, and remove those that stayed empty."""

import os
import tempfile


def find_nearest_folder(path: str) -> str:
    """The innermost existing folder above `path`, or `path` itself if it exists."""
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def probe_folder(path: str) -> None:
    """Raise an OSError unless a folder can be created in `path`, or in the innermost existing folder above it."""
    above = find_nearest_folder(path)
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".probe-", dir=above))
    except OSError as error:
        error.filename = above
        raise


def remove_empty_folders(path: str, *, below: str) -> None:
    """Remove the folder `path` and its parents, up to but not including `below`, as long as they are empty."""
    while path != below and path.startswith(f"{below.rstrip('/')}/"):
        try:
            os.rmdir(path)
        except OSError:
            return
        path = os.path.dirname(path)
