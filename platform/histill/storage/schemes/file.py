"""Local paths: files that are there whole or not at all, whoever writes beside and whatever ends the writer.

A file is written under a name of its own beside its target, `<target>.<number in 8 hex digits>.part`, brought to the
disk, and then renamed. The writer holds a lock on it, so that whoever writes the same target later can tell what a
killed writer has left, and removes it.
"""

import contextlib
import errno
import fcntl
import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from histill.config.common import Storage
from histill.storage.scheme import Scheme
from histill.storage.uris import local_path

if TYPE_CHECKING:
    import fsspec
    from pyarrow import fs

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_NAMES = 8  # of parts that are looked at before each write: as many writers of one target at once are swept up after


def open_bytes(uri: str, storage: Storage, attempts: int) -> "fs.FileSystem":
    """pyarrow's file system of this machine."""
    from pyarrow import fs

    return fs.LocalFileSystem()


def open_control(uri: str, storage: Storage) -> "fsspec.AbstractFileSystem":
    """fsspec's file system of this machine."""
    import fsspec

    return fsspec.filesystem("file")


def walk(filesystem: "fsspec.AbstractFileSystem", uri: str, storage: Storage) -> Iterator[str]:
    """The files below the folder `uri`; none where there is no such folder."""
    return (os.path.join(folder, name) for folder, _, names in os.walk(local_path(uri)) for name in names)


def put_file(path: str, data: bytes) -> None:
    """Write `path` whole: a reader sees the old file or the new one, never a part."""
    with _part(path) as part:
        _write(part, data)
        os.replace(part, path)
        _sync_folder(path)


def create_file(path: str, data: bytes) -> bool:
    """Write `path` whole if there is no such file; whether it was written."""
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
    """Write `path` whole if it holds `expected`; whether it was written. Of several at once one does it."""
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
    """A locked, empty file beside `path`, which is removed in the end if it is still there."""
    while True:
        part = _free_name(path)
        descriptor = _create(part)
        if descriptor is None:  # another writer was faster
            continue
        try:
            with contextlib.suppress(OSError):  # a file system without locks: what is left there stays
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, part):  # not swept between the two lines above
                yield part
                return
        finally:
            try:
                if _is_at(descriptor, part):  # else the name may be another writer's by now
                    os.unlink(part)
            finally:
                os.close(descriptor)


def _free_name(path: str) -> str:
    """The first name of a part of `path` that nobody writes under; what killed writers have left under it goes.

    The names are few and known, so that no folder is listed: a look costs the same among ten files and a million.
    """
    names = (f"{path}.{number:08x}.part" for number in itertools.count())
    looked_at = list(itertools.islice(names, _NAMES))
    free = [name for name in looked_at if _is_free(name)]  # of all, since a killed writer may have had any
    return free[0] if free else next(name for name in names if _is_free(name))


def _is_free(part: str) -> bool:
    """Whether there is no such part; one whose writer is no more is removed."""
    try:
        descriptor = os.open(part, os.O_RDWR)
    except FileNotFoundError:
        return True
    except PermissionError:
        if not os.path.lexists(part):  # it is the folder that cannot be looked into
            raise
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, part):
            os.unlink(part)
            return True
        return False
    except OSError:  # its writer is at work
        return False
    finally:
        os.close(descriptor)


def _create(part: str) -> int | None:
    """A descriptor of the new file `part`; None where there is one."""
    for last in (False, False, True):
        os.makedirs(os.path.dirname(part), exist_ok=True)
        try:
            return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return None
        except FileNotFoundError:  # a job that has ended removed its empty folder between the two lines
            if last:
                raise
    return None


def _write(path: str, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _create_in_place(path: str, data: bytes) -> bool:
    """For file systems without hard links: one creates it, though a reader may see a part."""
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
    """The name itself on the disk, so that no later file outlives it."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems know no such thing
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
