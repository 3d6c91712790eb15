"""Temporary folders on this machine's disk; those of a killed process are removed by the next.

Each process has one folder below the system's temporary folder, and a lock on a file in it for as long as it lives. A
folder whose lock can be had belongs to nobody.
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
    """An empty folder, which is removed when the block is left."""
    folder = make_scratch_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_scratch_folder() -> str:
    """An empty folder, for who removes it; it goes with the process at the latest."""
    return tempfile.mkdtemp(dir=_folder_of(os.getpid()))


@functools.cache
def _folder_of(pid: int) -> Path:
    """This process's; a fork has another."""
    remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    new = folder / f"{LOCK}.new"
    # held until the process ends; locked before it has the name that others look for
    fcntl.flock(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC), fcntl.LOCK_EX)
    new.rename(folder / LOCK)
    atexit.register(_remove, folder, pid)
    return folder


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # a fork may run its parent's last rites
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(temporary: Path) -> None:
    """Remove from `temporary` the folders of processes that have ended."""
    for folder in temporary.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), open(folder / LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError, an OSError: it is in use
            shutil.rmtree(folder, ignore_errors=True)
