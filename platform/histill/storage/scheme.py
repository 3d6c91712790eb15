"""What is special about one kind of storage: how it is opened, written and swapped, and what its errors mean.

Each kind is one file in `schemes/`, which is named as its URIs begin and holds an entry `SCHEME`. Nothing else in
histill knows one kind from another, but for `is_remote`.
"""

import functools
import importlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from histill.config.common import Storage
from histill.config.places import remote_scheme
from histill.errors import InputError

if TYPE_CHECKING:
    import fsspec
    from pyarrow import fs

LOCAL = "file"


@dataclass(frozen=True)
class ErrorTexts:
    """Texts that tell what an error of a scheme's clients means, where its type does not."""

    missing_bucket: tuple[str, ...] = ()
    refused: tuple[tuple[tuple[str, ...], str], ...] = ()  # texts, and what the server did, as in "denied access"
    unreachable: tuple[str, ...] = ()
    client: tuple[str, ...] = ()  # those that tell any error of the client from one of the Parquet reader


def overwrite_by_fsspec(filesystem: "fsspec.AbstractFileSystem", path: str, data: bytes) -> None:
    """Write an object whole."""
    filesystem.pipe_file(path, data)


def create_by_fsspec(filesystem: "fsspec.AbstractFileSystem", path: str, data: bytes) -> bool:
    """Write an object whole if there is none, where fsspec's file system knows how; whether it was written."""
    try:
        filesystem.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


def walk_by_fsspec(filesystem: "fsspec.AbstractFileSystem", uri: str, storage: Storage) -> Iterator[str]:
    """The URIs of the files below `uri`, one folder after the other."""
    for folder, _, names in filesystem.walk(uri, on_error="raise"):
        yield from (f"{uri.partition('://')[0]}://{folder.strip('/')}/{name}" for name in names)


def transient_by_type(error: OSError) -> str | None:
    """The name of an error that a second try may mend; None of any other."""
    return type(error).__name__ if isinstance(error, ConnectionError | TimeoutError) else None


@dataclass(frozen=True)
class Scheme:
    """One kind of storage. What it leaves out is done through fsspec, whose file system `open_control` gives.

    `overwrite`, `create` and `swap` are given that file system and a path in it, and write a file whole or not at all:
    whatever is there before, only if there is none, and only if it holds what is expected. Of several writers that
    create or swap one file at once, one alone may be told that it has written.
    """

    name: str
    open_control: Callable[[str, Storage], "fsspec.AbstractFileSystem"]
    swap: Callable[["fsspec.AbstractFileSystem", str, bytes, bytes], bool]
    create: Callable[["fsspec.AbstractFileSystem", str, bytes], bool] = create_by_fsspec
    overwrite: Callable[["fsspec.AbstractFileSystem", str, bytes], None] = overwrite_by_fsspec
    open_bytes: Callable[[str, Storage, int], "fs.FileSystem"] | None = None
    """pyarrow's own file system for shards, and the tries that it makes of one request."""
    walk: Callable[["fsspec.AbstractFileSystem", str, Storage], Iterator[str]] = walk_by_fsspec
    """URIs of files below one, to find any; it may end after a few."""
    keys: Callable[[str, Storage], Hashable] = lambda uri, storage: None
    """What changes once the clients opened before must not be used any more, as when their keys expire."""

    package: str = ""  # what to install, should an import fail
    packages: tuple[str, ...] = ()  # those whose errors are the storage's
    server: Callable[[Storage], str] = lambda storage: "the storage"
    """What sentences call the server."""
    setting: str = "the network"  # what says where the server is
    credentials: str = "look after the credentials"
    errors: ErrorTexts = field(default_factory=ErrorTexts)
    transient_reason: Callable[[OSError], str | None] = transient_by_type
    """A word for why a second try may succeed, free of addresses and credentials; None when it would not."""


def scheme_of(uri: str) -> Scheme:
    """The entry for `uri`."""
    return _entry(remote_scheme(uri) or LOCAL)


@functools.cache
def _entry(name: str) -> Scheme:
    entry: Scheme = importlib.import_module(f"histill.storage.schemes.{name}").SCHEME
    return entry


def missing_package(uri: str) -> InputError:
    """The sentence for a `uri` whose scheme needs a package that is not installed."""
    package = scheme_of(uri).package
    return InputError(f"{uri} needs the package {package}, which is not installed; `pip install {package}` everywhere.")
