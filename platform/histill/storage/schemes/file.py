"""Local paths: atomic writes, whatever other writers do and whenever the writer is killed.

A file is written next to its target, as `<target>.<number in 8 hex digits>.part`, synced to disk, and then renamed. The
writer holds a lock on it, so that later writers of the same target can tell what killed writers have left, and remove
it.
"""

import contextlib
import errno
import fcntl
import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from histill.config.common import Storage
from histill.storage.scheme import Content, Scheme
from histill.storage.uris import local_path

if TYPE_CHECKING:
    import fsspec
    from pyarrow import fs

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_NAMES = 8  # names of parts checked before each write: leftovers of up to this many concurrent writers are removed


def open_bytes(uri: str, storage: Storage, attempts: int) -> "fs.FileSystem":
    """pyarrow's local file system."""
    from pyarrow import fs

    return fs.LocalFileSystem()


def open_control(uri: str, storage: Storage) -> "fsspec.AbstractFileSystem":
    """fsspec's local file system."""
    import fsspec

    return fsspec.filesystem("file")


def walk(filesystem: "fsspec.AbstractFileSystem", uri: str, storage: Storage) -> Iterator[str]:
    """The files below the folder `uri`; empty if there is no such folder."""
    return (os.path.join(folder, name) for folder, _, names in os.walk(local_path(uri)) for name in names)


def put_file(path: str, data: Content) -> None:
    """Write `path` atomically: a reader sees the old file or the new one, never a part."""
    with _part(path) as part:
        _write(part, data)
        os.replace(part, path)
        _sync_folder(path)


def create_file(path: str, data: bytes) -> bool:
    """Create `path` atomically unless it exists; return whether it was written."""
    with _part(path) as part:
        _write(part, data)
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _create_in_place(path, data)
        _sync_folder(path)
        return True


def swap_file(path: str, expected: bytes, data: bytes) -> bool:
    """Replace `path` atomically if it holds `expected`; return whether it was written. Of several writers one wins."""
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), path) or file.read() != expected:
                return False
            put_file(path, data)
            return True
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _part(path: str) -> Iterator[str]:
    """A locked, empty file next to `path`, which is removed at the end if it still exists."""
    while True:
        part = _free_name(path)
        descriptor = _create(part)
        if descriptor is None:  # another writer was faster
            continue
        try:
            with contextlib.suppress(OSError):  # a file system without locks: leftovers stay there
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, part):  # not removed between the two lines above
                yield part
                return
        finally:
            try:
                if _is_at(descriptor, part):  # else the name may be another writer's by now
                    os.unlink(part)
            finally:
                os.close(descriptor)


def _free_name(path: str) -> str:
    """The first name of a part of `path` that is not in use; leftovers of killed writers are removed.

    The names are few and known, so the folder need not be listed: the cost is the same for ten files and a million.
    """
    names = (f"{path}.{number:08x}.part" for number in itertools.count())
    looked_at = list(itertools.islice(names, _NAMES))
    free = [name for name in looked_at if _is_free(name)]  # check all, since a killed writer may have used any
    return free[0] if free else next(name for name in names if _is_free(name))


def _is_free(part: str) -> bool:
    """Whether `part` is not in use; it is removed if its writer has died."""
    try:
        descriptor = os.open(part, os.O_RDWR)
    except FileNotFoundError:
        return True
    except PermissionError:
        if not os.path.lexists(part):  # the folder cannot be accessed
            raise
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, part):
            os.unlink(part)
            return True
        return False
    except OSError:  # its writer is alive
        return False
    finally:
        os.close(descriptor)


def _create(part: str) -> int | None:
    """Create the file `part` and return its descriptor; None if it exists."""
    for last in (False, False, True):
        os.makedirs(os.path.dirname(part), exist_ok=True)
        try:
            return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return None
        except FileNotFoundError:  # another job removed its empty folder between the two lines
            if last:
                raise
    return None


def _write(path: str, data: Content) -> None:
    with open(path, "r+b") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _create_in_place(path: str, data: bytes) -> bool:
    """Create a file on a file system without hard links: only one writer succeeds, but a reader may see a part."""
    try:
        with open(path, "xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def _is_at(descriptor: int, path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _sync_folder(path: str) -> None:
    """Sync the folder entry of `path` to disk, so that no later file outlives it."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems do not support it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


SCHEME = Scheme(
    name="file",
    open_bytes=open_bytes,
    open_control=open_control,
    overwrite=lambda _, path, data: put_file(path, data),
    create=lambda _, path, data: create_file(path, data),
    swap=lambda _, path, expected, data: swap_file(path, expected, data),
    walk=walk,
)
