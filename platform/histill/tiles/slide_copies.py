"""Local copies of slides in object storage, which no kill leaves behind: of their files, or of what is read of one."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from histill.cluster.threads import map_threads
from histill.config.common import Storage
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.storage.object_ranges import ObjectRanges
from histill.storage.scratch import scratch_folder
from histill.storage.sparse_file import DESCRIPTORS, SparseFile, copying_errors
from histill.storage.uris import folder_of
from histill.tiles.slide_parts import consists_of_several, is_dicom, list_alike, list_companions, of_same_series
from histill.tiles.sources import Unreadable
from histill.tiles.tiles_on_demand import TilesOnDemand, fetch_frame

CHUNK = 16 * 2**20  # bytes read at once
FETCHERS = 4  # files of a slide that are fetched concurrently
SMALL = 64 * 2**20  # bytes up to which a slide is fetched whole: finding out what to leave out takes as long
_HEAD = 132
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how files begin, the last two as BigTIFF
_SQLITE = b"SQLite format 3"


@dataclass(frozen=True)
class SlideCopy:
    """The path of a copy, and what fetches its tiles; None: all of them are there."""

    path: str
    tiles: TilesOnDemand | None = None


@contextlib.contextmanager
def copy_slide(uri: str, storage: Storage) -> Iterator[SlideCopy]:
    """A local copy of a slide, which is gone when the block is left.

    One file is an unnamed one, which vanishes with the process; of a large TIFF it holds what opens the slide, and
    tiles are fetched when they are read. Of several files (`list_companions`), all are fetched into a scratch folder,
    which the next process removes if this one is killed.

    Raises Unreadable when the slide does not exist, and InputError when the storage refuses or the disk is full.
    """
    with _open_sparse(uri, storage) as file:
        head = file.read_at(0, _HEAD)
        if (companions := _find_companions(uri, head, storage)) is not None:
            with _copy_of_several(uri, companions, storage) as path:
                yield SlideCopy(path)
            return
        tiles = fetch_frame(file) if file.size > SMALL and _has_frame(head) else None
        if tiles is None:
            file.fetch_all()
        with contextlib.nullcontext(file.path) if _opens_unnamed(head) else _named_copy(uri, file) as path:
            yield SlideCopy(path, tiles)


@contextlib.contextmanager
def copy_frame(uri: str, storage: Storage) -> Iterator[SlideCopy | None]:
    """A copy of what opens a slide, whatever its size; None if that takes all of it, or several files.

    Raises errors as `copy_slide` does.
    """
    with _open_sparse(uri, storage) as file:
        head = file.read_at(0, _HEAD)
        tiles = fetch_frame(file) if _has_frame(head) else None
        yield None if tiles is None else SlideCopy(file.path, tiles)


def _has_frame(head: bytes) -> bool:
    """Whether a file that begins with `head` may be a TIFF that can be opened without its tiles."""
    return head.startswith(_TIFF) and _opens_unnamed(head)


def _opens_unnamed(head: bytes) -> bool:
    """Whether OpenSlide opens a file without a name. SQLite (Sakura's slides) resolves links, which fails for it."""
    return os.path.isdir(DESCRIPTORS) and not head.startswith(_SQLITE)


@contextlib.contextmanager
def _open_sparse(uri: str, storage: Storage) -> Iterator[SparseFile]:
    try:
        ranges = ObjectRanges(uri, storage)
    except FileNotFoundError:
        raise _missing(uri) from None
    with contextlib.closing(SparseFile(ranges)) as file:
        yield file


def _find_companions(uri: str, head: bytes, storage: Storage) -> list[str] | None:
    """The other files of a slide that begins with `head`; None if it is a format of one file."""
    if is_dicom(head):  # whatever its extension
        return of_same_series(uri, list_alike(uri, storage), storage)
    return list(list_companions(uri, storage)) if consists_of_several(uri) else None


@contextlib.contextmanager
def _copy_of_several(uri: str, companions: Iterable[str], storage: Storage) -> Iterator[str]:
    """The path of a copy of a slide's own file, beside those of its companions."""
    own, folder = os.path.basename(uri), folder_of(uri)
    with scratch_folder() as scratch:

        def fetch(name: str) -> None:
            path = os.path.join(scratch, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _fetch(f"{folder}/{name}", path, uri, storage)

        for _ in map_threads(fetch, [own, *companions], FETCHERS):
            pass
        yield os.path.join(scratch, own)


@contextlib.contextmanager
def _named_copy(uri: str, file: SparseFile) -> Iterator[str]:
    """The path of a copy with the slide's name of a whole file."""
    with scratch_folder() as folder:
        path = os.path.join(folder, os.path.basename(uri))
        with copying_errors(uri), open(path, "wb") as named:
            for start in range(0, file.size, CHUNK):
                named.write(file.read_at(start, CHUNK))
        yield path


def _fetch(uri: str, path: str, slide: str, storage: Storage) -> None:
    """Fetch an object, one of a slide's files, to a local path."""
    filesystem, key = arrow_filesystem(uri, storage)
    with copying_errors(slide):
        file = open(path, "wb")  # noqa: SIM115
    try:
        with file, storage_errors(uri, storage), filesystem.open_input_stream(key) as stream:
            while chunk := stream.read(CHUNK):
                with copying_errors(slide):
                    file.write(chunk)
                    file.flush()
    except FileNotFoundError:
        raise _missing(uri) from None


def _missing(uri: str) -> Unreadable:
    return Unreadable(f"slide {uri} does not exist; correct its path.", code="source-missing")
