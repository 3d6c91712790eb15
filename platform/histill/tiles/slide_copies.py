"""Fetch slides from object storage: copies that no kill leaves behind."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

from histill.cluster.threads import map_threads
from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.control import read_head
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.storage.scratch import scratch_folder
from histill.storage.uris import folder_of
from histill.tiles.slide_parts import consists_of_several, is_dicom, list_alike, list_companions, of_same_series
from histill.tiles.sources import Unreadable

CHUNK = 16 * 2**20  # bytes read at once
FETCHERS = 4  # files of a slide that are fetched concurrently
DESCRIPTORS = "/proc/self/fd"  # where Linux gives open files a path, even those without a name


@contextlib.contextmanager
def copy_slide(uri: str, storage: Storage) -> Iterator[str]:
    """The path of a local copy of a slide, which is gone when the block is left.

    One file is an unnamed one, which vanishes with the process. Of several (`list_companions`), all are fetched into a
    scratch folder, which the next process removes if this one is killed; and so is one for SQLite, or without /proc.

    Raises Unreadable when the slide does not exist, and InputError when the storage refuses or the disk is full.
    """
    try:
        head = read_head(uri, 132, storage)
    except FileNotFoundError:
        raise _missing(uri) from None
    if is_dicom(head):
        companions = of_same_series(uri, list(list_alike(uri, storage)), storage)
    else:
        companions = list(list_companions(uri, storage))
    several = bool(companions) or consists_of_several(uri)
    with _copy_of_several(uri, companions, storage) if several else _copy_of_one(uri, storage) as path:
        yield path


@contextlib.contextmanager
def _copy_of_several(uri: str, companions: Iterable[str], storage: Storage) -> Iterator[str]:
    """`copy_slide` with the files `companions` beside the slide's own."""
    own, folder = os.path.basename(uri), folder_of(uri)
    with scratch_folder() as scratch:

        def fetch(name: str) -> None:
            path = os.path.join(scratch, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                _fetch(f"{folder}/{name}", file, storage)

        for _ in map_threads(fetch, [own, *companions], FETCHERS):
            pass
        yield os.path.join(scratch, own)


@contextlib.contextmanager
def _copy_of_one(uri: str, storage: Storage) -> Iterator[str]:
    """`copy_slide` of a single file."""
    with tempfile.TemporaryFile(prefix="histill-slide-") as copy:
        _fetch(uri, copy, storage)
        copy.seek(0)
        # SQLite (Sakura's slides) resolves links, which fails for a file without a name.
        if os.path.isdir(DESCRIPTORS) and copy.read(15) != b"SQLite format 3":
            yield f"{DESCRIPTORS}/{copy.fileno()}"
            return
        copy.seek(0)
        with scratch_folder() as folder:
            path = os.path.join(folder, os.path.basename(uri))
            with open(path, "wb") as named:
                shutil.copyfileobj(copy, named, CHUNK)
            yield path


def _fetch(uri: str, into: IO[bytes], storage: Storage) -> None:
    filesystem, key = arrow_filesystem(uri, storage)
    try:
        with storage_errors(uri, storage), filesystem.open_input_stream(key) as stream:
            while chunk := stream.read(CHUNK):
                _write(into, chunk, uri)
    except FileNotFoundError:
        raise _missing(uri) from None
    into.flush()


def _write(into: IO[bytes], chunk: bytes, uri: str) -> None:
    try:
        into.write(chunk)
    except OSError as error:
        raise InputError(
            f"slide {uri} cannot be fetched into {tempfile.gettempdir()} ({error.strerror}); set TMPDIR to a folder "
            "with more space on every node.",
            code="disk-full",
        ) from None


def _missing(uri: str) -> Unreadable:
    return Unreadable(f"slide {uri} does not exist; correct its path.", code="source-missing")
