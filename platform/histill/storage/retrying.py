"""A file system with retries, for the files that Ray Train writes itself.

Ray Train writes its state and the checkpoints through the file system that it is given. A request that fails for good
in a worker uses up one of its replacements, and in the controller it ends the run. The S3 client's own retries cover a
second or two; a server restart takes longer.
"""

import io
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from histill.config.common import Storage
from histill.errors import UnavailableError
from histill.storage.filesystems import arrow_filesystem, client_key, control_filesystem, storage_error
from histill.storage.retry import with_retries
from histill.storage.scheme import scheme_of
from histill.storage.uris import is_remote, path_within, uri_like

T = TypeVar("T")
_ATTEMPTS = 12  # about a minute with the waits between them, since nothing else retries the controller's requests
_CLIENT_ATTEMPTS = 2  # within the client itself


def retrying_filesystem(uri: str, storage: Storage) -> tuple[fs.FileSystem, str]:
    """pyarrow's file system for `uri` and the path within it; in object storage, one that survives a server restart.

    A request is retried for about a minute, or `storage.attempts` times if that is more. Files are read and written
    whole, in memory: it is for checkpoints of small models, not for tiles.
    """
    if not is_remote(uri):
        return arrow_filesystem(uri, storage)
    patient = storage.model_copy(update={"attempts": max(storage.attempts, _ATTEMPTS)})
    return fs.PyFileSystem(_RetryingFileSystem(patient, uri)), path_within(uri)


def _put(uri: str, content: bytes, storage: Storage) -> None:
    """Write the object `uri`, without a pyarrow stream, which completes an upload even when an exception closes it."""
    impatient = storage.model_copy(update={"attempts": _CLIENT_ATTEMPTS})
    filesystem, path = control_filesystem(uri, impatient)
    try:
        scheme_of(uri).overwrite(filesystem, path, content)
    except OSError:
        raise
    except Exception as error:  # some clients raise no OSError for an unreachable server
        if isinstance(storage_error(uri, storage, error), UnavailableError):
            raise ConnectionError(type(error).__name__) from None
        raise


class _RetryingFileSystem(fs.FileSystemHandler):
    """The file system of `root`, with every operation retried while it fails with transient errors."""

    def __init__(self, storage: Storage, root: str) -> None:
        self.storage = storage
        self.root = root
        self._open()

    def _open(self) -> None:
        self._key = client_key(self.root, self.storage)
        self._inner, _ = arrow_filesystem(self.root, self.storage, attempts=_CLIENT_ATTEMPTS)

    @property
    def inner(self) -> fs.FileSystem:
        """The file system, reopened once its keys must be renewed."""
        if self._key != client_key(self.root, self.storage):
            self._open()
        return self._inner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RetryingFileSystem) and bool(self.inner.equals(other.inner))

    def __reduce__(self) -> tuple[Any, ...]:
        return _RetryingFileSystem, (self.storage, self.root)

    def _tried(self, path: str, action: Callable[..., T], *arguments: Any, **options: Any) -> T:
        return with_retries(partial(action, *arguments, **options), self.storage, uri=uri_like(self.root, path))

    def _tried_once_done(self, path: str, action: Callable[..., None], *arguments: str) -> None:
        """Retry a removal of `path`, which an earlier attempt may have done although its reply was lost."""
        tries = 0

        def remove() -> None:
            nonlocal tries
            tries += 1
            try:
                action(*arguments)
            except FileNotFoundError:
                if tries == 1:
                    raise

        self._tried(path, remove)

    def get_type_name(self) -> str:
        return f"steady+{self.inner.type_name}"

    def normalize_path(self, path: str) -> str:
        return str(self.inner.normalize_path(path))

    def get_file_info(self, paths: Sequence[str]) -> Any:
        return self._tried(paths[0] if paths else "", self.inner.get_file_info, paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        return self._tried(selector.base_dir, self.inner.get_file_info, selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._tried(path, self.inner.create_dir, path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._tried_once_done(path, self.inner.delete_dir, path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._tried(path, self.inner.delete_dir_contents, path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("nothing of a run removes all buckets")

    def delete_file(self, path: str) -> None:
        self._tried_once_done(path, self.inner.delete_file, path)

    def move(self, src: str, dest: str) -> None:
        self._tried_once_done(src, self.inner.move, src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._tried(src, self.inner.copy_file, src, dest)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        def whole() -> pa.Buffer:
            with self.inner.open_input_file(path) as file:
                return file.read_buffer()

        return pa.BufferReader(self._tried(path, whole))

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        uri = uri_like(self.root, path)
        return pa.PythonFile(_Whole(lambda content: self._tried(path, _put, uri, content, self.storage)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError("objects are written whole")


class _Whole:
    """A file that passes its content to `write` when it is closed, unless an exception closes it."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._content = io.BytesIO()
        self._raised_before = sys.exception()
        self.closed = False

    def write(self, data: bytes) -> int:
        return self._content.write(data)

    def tell(self) -> int:
        return self._content.tell()

    def flush(self) -> None:
        """Do nothing: the content is written whole, on close."""

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if sys.exception() is self._raised_before:
                self._write(self._content.getvalue())
