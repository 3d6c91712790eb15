"""A bounded cache of row groups on a node's local disk, shared by the processes of the node.

Layout: one folder per tile set, in it one file per row group (an Arrow IPC file followed by its CRC-32), and next to
the folders a lock and the accounts, which hold the size of each folder. Names are hashes. Sizes are file sizes in
bytes.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import time
import uuid
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

_logger = logging.getLogger(__name__)

_SET = "row-groups-"
_LOCK, _ACCOUNTS, _IN_USE = ".lock", ".accounts.json", ".in-use"
_CHECKSUM_BYTES = 4
_TOUCH_EVERY_S = 60.0


class RowGroupCache:
    """The cached row groups of one tile set. Safe across threads and processes, but not picklable.

    An epoch reads everything once, so evicting the least recently used row group would always evict the one that is
    needed next. Therefore nothing is evicted within a set: once the cache is full, nothing more is added. Other sets
    are evicted when room is needed, the least recently used first, unless a process has them open.

    Files are readable by their owner only, so each user of a node needs a folder of their own. A cache that cannot be
    used (no permission, a full disk) warns once and stores nothing more from then on; it never raises.
    """

    def __init__(self, folder: str, max_bytes: int, set_id: str) -> None:
        """Open the cache.

        Args:
            folder: a local folder; created if missing.
            max_bytes: limit for all sets in `folder` together.
            set_id: identifies the tile set, such as its manifest's digest; must change with the content.
        """
        self._root = Path(folder)
        self._max_bytes = max_bytes
        self._folder = self._root / f"{_SET}{_hash(set_id)}"
        self._checked: set[Path] = set()
        self._touched = time.monotonic()
        self._usable = False
        self._adding = True
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                self._in_use = _enter(self._folder)
                weakref.finalize(self, os.close, self._in_use)
                self._usable = True
                self._shrink()
        except OSError as error:
            self._give_up(error)

    def get(self, key: str) -> pa.Table | None:
        """The table stored under `key`, memory-mapped without a copy; None if there is none.

        A file's checksum is verified the first time that this object reads it; a damaged file is removed.
        """
        if not self._usable:
            return None
        path = self._path(key)
        try:
            with pa.memory_map(str(path)) as file:
                content = file.read_buffer()
            if path not in self._checked and not _is_whole(content):
                raise pa.ArrowInvalid("the checksum is another")
            table = pa.ipc.open_file(pa.BufferReader(content.slice(0, content.size - _CHECKSUM_BYTES))).read_all()
        except pa.ArrowException:
            self._remove(path)
            return None
        except OSError:  # usually that there is none
            return None
        self._checked.add(path)
        self._touch()
        return table

    def put(self, key: str, table: pa.Table) -> bool:
        """Store `table` under `key` and return whether it is stored now. An existing entry is left as it is."""
        if not self._usable or not self._adding:
            return False
        path = self._path(key)
        try:
            if path.exists():
                return True
            measured = pa.MockOutputStream()
            _write(table, measured)
            size = measured.size() + _CHECKSUM_BYTES
            with self._locked():
                if self._leaving(self._sizes(), size)[1] > 0:
                    return False
            sink = pa.BufferOutputStream()
            _write(table, sink)
            body = sink.getvalue()  # most of the work, so done outside the lock
            with self._locked():
                return self._add(path, body, size)
        except OSError as error:
            self._give_up(error)
            return False

    def _path(self, key: str) -> Path:
        return self._folder / f"{_hash(key)}.arrow"

    def _add(self, path: Path, body: pa.Buffer, size: int) -> bool:
        if path.exists():  # another process was faster
            return True
        sizes = self._sizes()
        leaving, missing = self._leaving(sizes, size)
        if missing > 0:
            return False
        self._drop(leaving, sizes)
        part = path.with_suffix(f".{uuid.uuid4().hex[:8]}.part")
        try:
            with open(_open(part, os.O_WRONLY | os.O_EXCL), "wb") as file:
                file.write(body)
                file.write(_checksum(body))
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        sizes[self._folder.name] += size
        self._save(sizes)
        return True

    def _shrink(self) -> None:
        """Evict until the limit holds, which may be lower than before."""
        sizes = self._sizes()
        if sum(sizes.values()) <= self._max_bytes:
            return
        leaving, missing = self._leaving(sizes, 0)
        self._drop(leaving, sizes)
        for file in self._folder.glob("*.arrow"):
            if missing > 0:
                missing -= file.stat().st_size
                file.unlink()

    def _drop(self, names: list[str], sizes: dict[str, int]) -> None:
        """Remove sets and the accounts; if this process dies before it writes new ones, files are measured again."""
        (self._root / _ACCOUNTS).unlink(missing_ok=True)
        for name in names:
            shutil.rmtree(self._root / name)
            del sizes[name]

    def _leaving(self, sizes: dict[str, int], size: int) -> tuple[list[str], int]:
        """The sets to evict to make room for `size` bytes, and how many bytes are still missing then."""
        missing = size - (self._max_bytes - sum(sizes.values()))
        leaving = []
        for name in sorted(sizes, key=lambda name: _last_used(self._root / name)):
            if missing > 0 and _is_idle(self._root / name):
                leaving.append(name)
                missing -= sizes[name]
        return leaving, max(0, missing)

    def _sizes(self) -> dict[str, int]:
        """The bytes of each set by folder name, measured where the accounts are missing or outdated."""
        try:
            accounts = json.loads((self._root / _ACCOUNTS).read_bytes())
        except (OSError, ValueError):
            accounts = {}
        sizes = {}
        for folder in self._root.glob(f"{_SET}*"):
            size, changed = accounts.get(folder.name, (0, None))
            sizes[folder.name] = size if changed == folder.stat().st_mtime_ns else _measure(folder)
        return sizes

    def _save(self, sizes: dict[str, int]) -> None:
        accounts = {name: (size, (self._root / name).stat().st_mtime_ns) for name, size in sizes.items()}
        with open(_open(self._root / _ACCOUNTS, os.O_WRONLY | os.O_TRUNC), "w") as file:
            json.dump(accounts, file)

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(OSError), self._locked():
            path.unlink(missing_ok=True)
        _logger.warning("cached row group %s was damaged and is read from the storage again", path)

    def _touch(self) -> None:
        now = time.monotonic()
        if now - self._touched > _TOUCH_EVERY_S:
            self._touched = now
            with contextlib.suppress(OSError):
                os.utime(self._in_use)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(_open(self._root / _LOCK, os.O_RDWR), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _give_up(self, error: OSError) -> None:
        if self._adding:
            self._adding = False
            _logger.warning("the cache %s stores nothing more: %s", self._root, error.strerror or error)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _open(path: Path, flags: int) -> int:
    """Open a file that only this user can read, created if missing, without following links; return its descriptor."""
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _enter(folder: Path) -> int:
    """Mark a set's folder as in use until the returned descriptor is closed. Raises OSError when others may read it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder that only this user can read")
    descriptor = _open(folder / _IN_USE, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.utime(descriptor)
    return descriptor


def _is_idle(folder: Path) -> bool:
    try:
        with (folder / _IN_USE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a process holds it, or it is not a folder of this cache
        return False
    return True


def _last_used(folder: Path) -> float:
    try:
        return (folder / _IN_USE).stat().st_mtime
    except OSError:
        return 0.0


def _measure(folder: Path) -> int:
    """Measure the bytes of a set's row groups, and remove parts left by processes that died while writing."""
    size = 0
    for entry in os.scandir(folder):
        if entry.name.endswith(".part"):
            os.unlink(entry.path)
        else:
            size += entry.stat().st_size
    return size


def _write(table: pa.Table, sink: pa.NativeFile) -> None:
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _checksum(body: pa.Buffer) -> bytes:
    return zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "big")


def _is_whole(content: pa.Buffer) -> bool:
    size = max(0, content.size - _CHECKSUM_BYTES)
    return _checksum(content.slice(0, size)) == content.slice(size).to_pybytes()
