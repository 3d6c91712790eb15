"""A local file that stands in for an object and holds those of its bytes that were asked for."""

import contextlib
import io
import itertools
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from histill.errors import InputError
from histill.storage.object_ranges import ObjectRanges

BLOCK = 64 * 2**10  # bytes that are there or not, together
GAP = 4  # blocks between two that are missing, which are read along, since another request takes longer
LONGEST = 128  # blocks of one request
AT_ONCE = 4  # requests
DESCRIPTORS = "/proc/self/fd"  # where Linux gives open files a path, even those without a name


class SparseFile:
    """A file of an object's size, with holes where nothing has been fetched yet, which read as zeros.

    It has no name, so that it vanishes with the process; `path` is valid in this process while it is open, and on Linux
    alone. Threads may fetch concurrently. What is there never changes.
    """

    def __init__(self, ranges: ObjectRanges) -> None:
        self.size = ranges.size
        self._ranges = ranges
        self._there = np.zeros(-(-self.size // BLOCK), bool)
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile(prefix="histill-sparse-")  # noqa: SIM115
        with copying_errors(ranges.uri):
            os.ftruncate(self._file.fileno(), self.size)

    @property
    def path(self) -> str:
        """A path of the file for this process."""
        return f"{DESCRIPTORS}/{self._file.fileno()}"

    def close(self) -> None:
        """Close the file; its bytes are gone."""
        self._file.close()

    def fetch(self, starts: np.ndarray, lengths: np.ndarray) -> None:
        """Fetch what is not there yet of ranges of bytes, int64 [N] each; what is outside of the object is left out.

        Raises InputError when the object has been replaced, the storage refuses or the disk is full.
        """
        wanted = self._find_blocks(starts, lengths)
        if not (wanted & ~self._there).any():
            return
        with self._lock:
            missing = np.flatnonzero(wanted & ~self._there)
            runs = list(_join(missing))
            if len(runs) <= 1:
                for run in runs:
                    self._fetch_run(run)
                return
            with ThreadPoolExecutor(min(AT_ONCE, len(runs))) as pool:
                done = [pool.submit(self._fetch_run, run) for run in runs]
                try:
                    for each in done:
                        each.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise

    def fetch_range(self, start: int, length: int) -> None:
        """`fetch` of one range, at little cost if it is there."""
        first, last = max(0, start) // BLOCK, -(-min(start + length, self.size) // BLOCK)
        if not self._there[first:last].all():
            self.fetch(np.array([start]), np.array([length]))

    def fetch_all(self) -> None:
        """`fetch` of the whole object."""
        self.fetch_range(0, self.size)

    @property
    def fetched(self) -> int:
        """Bytes that are there, in whole blocks."""
        return int(self._there.sum()) * BLOCK

    def open(self) -> "SparseReader":
        """The object as a file, whose reads fetch what they read."""
        return SparseReader(self)

    def read_at(self, start: int, length: int) -> bytes:
        """Bytes of the object; fewer at its end."""
        self.fetch_range(start, length)
        return os.pread(self._file.fileno(), length, start)

    def _find_blocks(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Which blocks the ranges touch, bool."""
        first = np.clip(starts, 0, self.size)
        end = np.clip(starts + lengths, 0, self.size)
        some = end > first
        changes = np.zeros(len(self._there) + 1, np.int64)
        np.add.at(changes, first[some] // BLOCK, 1)
        np.add.at(changes, -(-end[some] // BLOCK), -1)
        return changes[:-1].cumsum() > 0

    def _fetch_run(self, run: tuple[int, int]) -> None:
        """Fetch the blocks from the first on, to before the second."""
        first, end = run
        start, stop = first * BLOCK, min(end * BLOCK, self.size)
        left = memoryview(self._ranges.read(start, stop - start))
        with copying_errors(self._ranges.uri):
            while left:
                written = os.pwrite(self._file.fileno(), left, start)
                left, start = left[written:], start + written
        self._there[first:end] = True


class SparseReader(io.RawIOBase):
    """A `SparseFile` as a file. `failed` is the error of the first read that failed: some parsers go on without it."""

    def __init__(self, file: SparseFile) -> None:
        self._file, self._at = file, 0
        self.failed: Exception | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As in `io`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """As in `io`."""
        return self._at

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        """As in `io`, but to the end of the buffer or of the file."""
        try:
            data = self._file.read_at(self._at, len(buffer))
        except InputError as error:
            self.failed = self.failed or error
            raise
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@contextlib.contextmanager
def copying_errors(uri: str) -> Iterator[None]:
    """Raise InputError for a temporary folder that does not take a copy of `uri`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"slide {uri} cannot be fetched into {tempfile.gettempdir()} ({error.strerror}); set TMPDIR to a folder "
            "with more space on every node.",
            code="disk-full",
        ) from None


def _join(missing: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of blocks to fetch (first, and the one after the last), given those that are missing, ascending."""
    if not len(missing):
        return
    breaks = np.flatnonzero(np.diff(missing) > GAP) + 1
    for run in np.split(missing, breaks):
        first, end = int(run[0]), int(run[-1]) + 1
        starts = [*range(first, end, LONGEST), end]
        yield from itertools.pairwise(starts)
