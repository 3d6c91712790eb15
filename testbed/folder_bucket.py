"""A folder that stands in for all buckets of s3:// in this process, where a server would only cost time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from histill.config.common import Storage
from histill.storage import scheme
from histill.storage.scheme import ReadRange
from histill.storage.schemes import s3


class _Bucket(LocalFileSystem):
    """fsspec's file system of `root`, for paths as s3://bucket/key."""

    root = ""
    cachable = False

    def _strip_protocol(self, path: Any) -> Any:
        text = str(path)
        return f"{self.root}/{text.removeprefix('s3://').rstrip('/')}" if text.startswith("s3://") else text


@dataclass
class FolderBucket:
    """What was read of it: `ranges` (path, first byte, length) by range, and `whole`, the paths read as streams."""

    root: Path
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def bytes_read(self) -> int:
        """By range."""
        return sum(length for _, _, length in self.ranges)

    def read(self, path: str, start: int, length: int) -> tuple[pa.Buffer, int]:
        """As `storage.scheme.ReadRange`; the version is the time of the last change."""
        with self._lock:
            self.ranges.append((path, start, length))
        with (self.root / path).open("rb") as file:
            version = (self.root / path).stat().st_mtime_ns
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise OSError("HTTP status 416")
        return pa.py_buffer(data), version


class _Streams(fs.FSSpecHandler):
    """pyarrow's file system of the folder, which notes what is opened whole."""

    def __init__(self, bucket: FolderBucket) -> None:
        super().__init__(LocalFileSystem())
        self._bucket = bucket

    def open_input_stream(self, path: str) -> Any:
        self._bucket.whole.append(path)
        return fs.LocalFileSystem().open_input_stream(str(self._bucket.root / path))

    def open_input_file(self, path: str) -> Any:
        return fs.LocalFileSystem().open_input_file(str(self._bucket.root / path))


@contextmanager
def folder_bucket(root: Path, *, by_range: bool = True) -> Iterator[FolderBucket]:
    """s3://bucket/key is `root`/bucket/key until the block is left. Without `by_range`, no range is one request."""
    bucket = FolderBucket(root)

    def open_bytes(uri: str, storage: Storage, attempts: int) -> fs.FileSystem:
        return fs.PyFileSystem(_Streams(bucket))

    def open_control(uri: str, storage: Storage) -> _Bucket:
        filesystem = _Bucket()
        filesystem.root = str(root)
        return filesystem

    def open_ranges(uri: str, storage: Storage) -> ReadRange | None:
        return bucket.read if by_range else None

    stand_in = replace(s3.SCHEME, open_bytes=open_bytes, open_control=open_control, open_ranges=open_ranges)
    with patch.object(s3, "SCHEME", stand_in):
        scheme._entry.cache_clear()
        try:
            yield bucket
        finally:
            scheme._entry.cache_clear()
