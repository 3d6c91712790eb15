"""The interface of a storage scheme: how it is opened, written and swapped, and what its errors mean.

Each scheme is one file in `schemes/`, named after the beginning of its URIs, which defines `SCHEME`. Nothing else in
histill distinguishes between schemes, except for `is_remote`.
"""

import functools
import importlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from mmap import mmap
from typing import TYPE_CHECKING

from histill.config.common import Storage
from histill.config.places import remote_scheme
from histill.errors import InputError

if TYPE_CHECKING:
    import fsspec
    import pyarrow as pa
    from pyarrow import fs

LOCAL = "file"
Content = bytes | mmap
"""What is written: a large file is mapped, so that not more of it is held than is being sent."""


ReadRange = Callable[[str, int, int], tuple["pa.Buffer", int]]
"""Given a path within the scheme, a first byte and a length: the bytes, and a number that changes with the object.

Raises OSError for everything else than these bytes.
"""


@dataclass(frozen=True)
class ErrorTexts:
    """Substrings that tell what an error of a scheme's clients means, where its type does not."""

    missing_bucket: tuple[str, ...] = ()
    refused: tuple[tuple[tuple[str, ...], str], ...] = ()  # substrings, and what the server did, as in "denied access"
    unreachable: tuple[str, ...] = ()
    client: tuple[str, ...] = ()  # tell errors of the client from those of the Parquet reader


def overwrite_by_fsspec(filesystem: "fsspec.AbstractFileSystem", path: str, data: Content) -> None:
    """Write an object whole."""
    filesystem.pipe_file(path, data)


def create_by_fsspec(filesystem: "fsspec.AbstractFileSystem", path: str, data: bytes) -> bool:
    """Create an object unless it exists, if fsspec's file system can do so; return whether it was written."""
    try:
        filesystem.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


def walk_by_fsspec(filesystem: "fsspec.AbstractFileSystem", uri: str, storage: Storage) -> Iterator[str]:
    """The URIs of the files below `uri`, folder by folder."""
    for folder, _, names in filesystem.walk(uri, on_error="raise"):
        yield from (f"{uri.partition('://')[0]}://{folder.strip('/')}/{name}" for name in names)


def transient_by_type(error: OSError) -> str | None:
    """The name of an error that a retry may overcome; None for any other."""
    return type(error).__name__ if isinstance(error, ConnectionError | TimeoutError) else None


@dataclass(frozen=True)
class Scheme:
    """One kind of storage. The defaults go through fsspec, with the file system that `open_control` returns.

    `overwrite`, `create` and `swap` get that file system and a path in it, and write a file atomically: always, only if
    it does not exist, and only if it holds the expected bytes. Of several writers that create or swap one file at the
    same time, only one may be told that it has written.
    """

    name: str
    open_control: Callable[[str, Storage], "fsspec.AbstractFileSystem"]
    swap: Callable[["fsspec.AbstractFileSystem", str, bytes, bytes], bool]
    create: Callable[["fsspec.AbstractFileSystem", str, bytes], bool] = create_by_fsspec
    overwrite: Callable[["fsspec.AbstractFileSystem", str, Content], None] = overwrite_by_fsspec
    open_bytes: Callable[[str, Storage, int], "fs.FileSystem"] | None = None
    """Opens pyarrow's own file system for shards, given the number of attempts that it makes per request."""
    open_ranges: Callable[[str, Storage], ReadRange | None] | None = None
    """Opens a reader of byte ranges by one request each, for schemes where requests matter; None where it cannot."""
    walk: Callable[["fsspec.AbstractFileSystem", str, Storage], Iterator[str]] = walk_by_fsspec
    """URIs of files below one, to find out if there are any; may stop after a few."""
    keys: Callable[[str, Storage], Hashable] = lambda uri, storage: None
    """A value that changes once earlier clients must not be used any more, for example because their keys expire."""

    package: str = ""  # what to install if an import fails
    packages: tuple[str, ...] = ()  # packages whose errors are the storage's
    server: Callable[[Storage], str] = lambda storage: "the storage"
    """What errors call the server."""
    setting: str = "the network"  # the setting that says where the server is
    credentials: str = "check the credentials"
    errors: ErrorTexts = field(default_factory=ErrorTexts)
    transient_reason: Callable[[OSError], str | None] = transient_by_type
    """The reason why a retry may succeed, without addresses or credentials; None if it would not."""


def scheme_of(uri: str) -> Scheme:
    """The scheme of `uri`."""
    return _entry(remote_scheme(uri) or LOCAL)


@functools.cache
def _entry(name: str) -> Scheme:
    entry: Scheme = importlib.import_module(f"histill.storage.schemes.{name}").SCHEME
    return entry


def missing_package(uri: str) -> InputError:
    """The error for a `uri` whose scheme needs a package that is not installed."""
    package = scheme_of(uri).package
    return InputError(
        f"{uri} needs the package {package}, which is not installed; `pip install {package}` everywhere.",
        code="package-missing",
    )
