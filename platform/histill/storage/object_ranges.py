"""Read byte ranges of one object, all of the same version of it."""

import threading
from typing import TYPE_CHECKING

import pyarrow as pa

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.control import describe
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.storage.retry import with_retries
from histill.storage.scheme import ReadRange, scheme_of
from histill.storage.uris import path_within

if TYPE_CHECKING:
    from pyarrow import NativeFile


class ObjectRanges:
    """The bytes of an object as it was when this was made. Safe across threads.

    Raises FileNotFoundError when there is none, and InputError when the storage refuses.
    """

    def __init__(self, uri: str, storage: Storage, reader: ReadRange | None = None) -> None:
        self.uri = uri
        self._storage = storage
        self._state = describe(uri, storage)
        self._reader = open_reader(uri, storage) if reader is None else reader
        self._version: int | None = None  # as the reader calls it
        self._file: NativeFile | None = None
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """In bytes."""
        return self._state.size

    def read(self, start: int, length: int) -> pa.Buffer:
        """The `length` bytes from `start` on.

        Raises InputError when the object has been replaced, or the storage refuses.
        """
        data = self._read_by_one_request(start, length)
        if data is None:
            data = self._read_patiently(start, length)
        return data

    def _read_by_one_request(self, start: int, length: int) -> pa.Buffer | None:
        """None where the scheme has no reader, or whenever anything goes wrong."""
        if self._reader is None:
            return None
        try:
            data, version = self._reader(path_within(self.uri), start, length)
        except OSError:
            return None
        if self._version is None:  # of the bytes that were read; they are those that were described, if nothing changed
            self._check_unchanged()
            self._version = version
        if version != self._version:
            raise self._replaced()
        return data

    def _read_patiently(self, start: int, length: int) -> pa.Buffer:
        """By pyarrow's client, which says nothing of versions."""

        def read() -> pa.Buffer:
            data = self._opened().read_at(length, start)
            if len(data) != length:
                raise ConnectionError(f"{len(data)} of {length} bytes")
            return pa.py_buffer(data)

        try:
            with storage_errors(self.uri, self._storage):
                found = with_retries(read, self._storage, uri=self.uri)
            self._check_unchanged()
        except FileNotFoundError:
            raise self._replaced() from None
        return found

    def _opened(self) -> "NativeFile":
        with self._lock:
            if self._file is None:
                filesystem, path = arrow_filesystem(self.uri, self._storage)
                self._file = filesystem.open_input_file(path)
            return self._file

    def _check_unchanged(self) -> None:
        try:
            if describe(self.uri, self._storage) == self._state:
                return
        except FileNotFoundError:
            pass
        raise self._replaced()

    def _replaced(self) -> InputError:
        return InputError(
            f"{self.uri} has been replaced or removed while it was read; leave it as it is, and give the same command "
            "again.",
            code="input-changed",
        )


def open_reader(uri: str, storage: Storage) -> ReadRange | None:
    """What reads a range of an object in the bucket of `uri` by one request; None where nothing does."""
    open_ranges = scheme_of(uri).open_ranges
    return None if open_ranges is None else open_ranges(uri, storage)
