"""Temporary folders on the local disk; those of a killed process are removed by the next process.

Each process has one folder in the system's temporary folder, and holds a lock on a file in it as long as it lives. A
folder whose lock is free is abandoned.
"""

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "histill-scratch-"
LOCK = ".lock"


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """An empty folder that is removed at the end of the block."""
    folder = make_scratch_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_scratch_folder() -> str:
    """Create an empty folder for the caller to remove; it is removed with the process at the latest."""
    return tempfile.mkdtemp(dir=_folder_of(os.getpid()))


@functools.cache
def _folder_of(pid: int) -> Path:
    """The folder of this process; a fork gets its own."""
    remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    new = folder / f"{LOCK}.new"
    # held until the process ends; locked before it gets the name that others look for
    fcntl.flock(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC), fcntl.LOCK_EX)
    new.rename(folder / LOCK)
    atexit.register(_remove, folder, pid)
    return folder


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # a fork may run its parent's exit handlers
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(temporary: Path) -> None:
    """Remove from `temporary` the folders of processes that have ended."""
    for folder in temporary.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), open(folder / LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError, an OSError, if it is in use
            shutil.rmtree(folder, ignore_errors=True)
