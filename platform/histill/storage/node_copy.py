"""Files that one process of a node makes, and all of the node's processes map.

They are in the cache's folder if there is a cache, else below the system's temporary folder, readable by their owner
only. A copy stays while a process that uses it lives. One that nobody has opened for a week is removed when another is
made.
"""

import contextlib
import fcntl
import functools
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from histill.config.common import Storage

_KEPT_S = 7 * 24 * 3600.0
_LOCK, _SIZES = ".lock", "sizes.json"

_logger = logging.getLogger(__name__)


def open_node_copy(name: str, storage: Storage, make: Callable[[Path], None]) -> Path | None:
    """The folder `name` of this node, filled by `make` if there is none; other processes wait until it is.

    `name` must change with the content. Returns None, with a warning, where this node has no room or permission. What
    else `make` raises is raised, and leaves nothing.
    """
    try:
        return _open(_root(storage), name, make)
    except OSError as error:
        _logger.warning("no copy of %s is shared on this node: %s", name, error.strerror or error)
        return None


def find_node_copy(name: str, storage: Storage) -> Path | None:
    """The folder `name` of this node; None, at once, if there is none or another process is making it."""
    root = _root(storage)
    if not (root / name).is_dir():
        return None
    try:
        _check_private(root)
        lock = _lock(root / f"{name}{_LOCK}")
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.utime(lock)
    except OSError:
        return None
    if _is_whole(root / name):
        return root / name
    fcntl.flock(lock, fcntl.LOCK_UN)
    return None


def _root(storage: Storage) -> Path:
    if storage.cache is not None:
        return Path(storage.cache.folder) / "shared"
    return Path(tempfile.gettempdir()) / f"histill-shared-{os.geteuid()}"


def _open(root: Path, name: str, make: Callable[[Path], None]) -> Path:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(root)
    folder, lock = root / name, _lock(root / f"{name}{_LOCK}")
    os.utime(lock)
    fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        while not _is_whole(folder):
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_whole(folder):
                _remove_unused(root, name)
                _make(folder, make)
            fcntl.flock(lock, fcntl.LOCK_SH)
    except BaseException:
        fcntl.flock(lock, fcntl.LOCK_UN)  # the process lives on, and others may make it
        raise
    return folder


def _check_private(root: Path) -> None:
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{root} is not a folder that only this user can read")


@functools.cache
def _lock(path: Path) -> int:
    """The open lock file, held until the process ends."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    part = folder.with_name(f"{folder.name}.part")
    for left in (part, folder):  # of a process that was killed; of a folder that something has cleared since
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir(mode=0o700)
    try:
        make(part)
        (part / _SIZES).write_text(json.dumps({path.name: path.stat().st_size for path in part.iterdir()}))
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _is_whole(folder: Path) -> bool:
    """Whether all files are there that were made, as long as they were."""
    try:
        sizes = json.loads((folder / _SIZES).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except FileNotFoundError:
        return False


def _remove_unused(root: Path, name: str) -> None:
    for path in root.glob(f"*{_LOCK}"):
        other = root / path.name.removesuffix(_LOCK)
        if other.name == name:
            continue
        with contextlib.suppress(OSError), path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError, an OSError, if it is in use
            if time.time() - path.stat().st_mtime > _KEPT_S:
                shutil.rmtree(other, ignore_errors=True)
                path.unlink()
