"""Open local and remote slide files, explain why one is refused, and identify slides."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.control import exists
from histill.storage.filesystems import arrow_filesystem, control_filesystem, storage_errors
from histill.storage.scratch import scratch_folder
from histill.storage.uris import is_remote
from histill.tiles.openslide_errors import explain_error
from histill.tiles.sources import Unreadable
from histill.tiles.tiff_traits import find_misread

if TYPE_CHECKING:
    from openslide import OpenSlide

    from histill.tiles.tiled_slide import TiledSlide

NAMED = 5  # missing slides that an error lists
OPENERS = 8  # slides looked for or opened concurrently
CHUNK = 16 * 2**20  # bytes read at once
SEVERAL_FILES = {".mrxs": "MIRAX", ".dcm": "DICOM", ".vms": "Hamamatsu VMS", ".vmu": "Hamamatsu VMU"}
GENERIC = "generic-tiff"  # OpenSlide's name for a TIFF that is not in a scanner's format
_TAGS = ("ETag", "etag", "created")  # where fsspec's file systems report an object's version, the most reliable first
DESCRIPTORS = "/proc/self/fd"  # where Linux gives open files a path, even those without a name


@contextlib.contextmanager
def open_slide(uri: str, storage: Storage) -> Iterator["TiledSlide"]:
    """Open a slide; one in object storage is fetched into an unnamed temporary file, which vanishes with the process.

    Raises Unreadable when OpenSlide cannot use it, on opening or inside the block.
    """
    import openslide

    from histill.tiles.tiled_slide import TiledSlide

    with contextlib.ExitStack() as stack:
        path = stack.enter_context(_local_copy(uri, storage)) if is_remote(uri) else os.path.abspath(uri)
        _check_file(path, uri)
        try:
            slide = stack.enter_context(TiledSlide(path))
            if slide.properties["openslide.vendor"] == GENERIC and (misread := find_misread(path)):
                raise Unreadable(f"slide {uri} {misread}", code="slide-unreadable")
            yield slide
        except openslide.OpenSlideUnsupportedFormatError:
            raise Unreadable(
                f"slide {uri} is not in a format that OpenSlide reads; convert it to a pyramidal TIFF.",
                code="slide-unreadable",
            ) from None
        except openslide.OpenSlideError as error:
            raise Unreadable(f"slide {uri} {explain_error(str(error))}", code="slide-unreadable") from None


def _check_file(path: str, uri: str) -> None:
    """Raise Unreadable for files whose fault OpenSlide would misreport, or that are not the slide but open anyway."""
    if os.path.isdir(path):
        raise Unreadable(
            f"slide {uri} is a folder; name the slide's file (of DICOM any one of them) in it.", code="slide-unreadable"
        )
    if not os.path.isfile(path):
        raise Unreadable(f"slide {uri} does not exist; correct its path.", code="source-missing")
    try:
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError as error:
        raise Unreadable(
            f"slide {uri} cannot be read ({error.strerror}); see to its permissions.", code="slide-unreadable"
        ) from None
    if not head:
        raise Unreadable(f"slide {uri} is empty (0 bytes); copy it again.", code="slide-unreadable")
    base, extension = os.path.splitext(path)
    if extension.lower() == ".mrxs" and not os.path.isfile(os.path.join(base, "Slidedat.ini")):
        raise Unreadable(
            f"slide {uri} lacks its folder {os.path.basename(base)}/ (MIRAX); copy it beside the file.",
            code="slide-unreadable",
        )
    if is_remote(uri) and head[128:] == b"DICM":
        raise _of_several(uri, "DICOM")


def check_existence(slides: Iterable[str], storage: Storage, *, here: bool = True, allowed: int = 0) -> None:
    """Raise InputError when more than `allowed` of the `slides` do not exist.

    Local paths are left out unless the work is done `here`: they may be those of a cluster's nodes.
    """
    with ThreadPoolExecutor(OPENERS) as pool:
        seen = [uri for uri in slides if here or is_remote(uri)]
        there = pool.map(lambda uri: exists(uri, storage), seen)
        missing = list(dict.fromkeys(uri for uri, found in zip(seen, there, strict=True) if not found))
    if len(missing) <= allowed:
        return
    if len(missing) == 1:
        raise InputError(f"slide {missing[0]} does not exist; correct its path.", code="source-missing")
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    raise InputError(
        f"{len(missing)} slides do not exist; correct their paths: {', '.join(missing[:NAMED])}{more}.",
        code="source-missing",
    )


def consists_of_several(uri: str) -> bool:
    """Whether a slide is in a multi-file format, by the extension of its file."""
    return os.path.splitext(uri)[1].lower() in SEVERAL_FILES


def _of_several(uri: str, kind: str) -> Unreadable:
    return Unreadable(
        f"slide {uri} is one file of several ({kind}), which are not fetched together from object storage; put the "
        "slide on a disk that every node mounts and give that path, or convert it to a pyramidal TIFF.",
        code="slide-unreadable",
    )


@contextlib.contextmanager
def _local_copy(uri: str, storage: Storage) -> Iterator[str]:
    """The path of a copy that no kill leaves behind; for SQLite, or without /proc, the next process removes it."""
    if consists_of_several(uri):
        raise _of_several(uri, SEVERAL_FILES[os.path.splitext(uri)[1].lower()])
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
        raise Unreadable(f"slide {uri} does not exist; correct its path.", code="source-missing") from None
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


def identify_slide(slide: "OpenSlide", uri: str, storage: Storage) -> str:
    """The identity of an open slide, which is the same for each copy and each file of it.

    It is OpenSlide's quickhash-1 (over the smallest level and the scanner's metadata), or the SHA-256 of the file if
    OpenSlide computes none because the smallest level is too large.
    """
    known = slide.properties.get("openslide.quickhash-1")
    if known:
        return str(known)
    filesystem, path = arrow_filesystem(uri, storage)
    digest = hashlib.sha256()
    with storage_errors(uri, storage), filesystem.open_input_stream(path) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def fingerprint_source(uri: str, storage: Storage) -> str:
    """A value that changes when the slide at `uri` is replaced, without reading it: sizes and times, or size and ETag.

    It includes the folder with the file's name (MIRAX), or the other DICOM files in the file's folder.

    Raises FileNotFoundError when there is none, and InputError when the storage refuses.
    """
    if is_remote(uri):
        filesystem, key = control_filesystem(uri, storage)
        with storage_errors(uri, storage):
            about = filesystem.info(key)
        tag = next((str(about[key]) for key in _TAGS if key in about), "")
        return f"{about['size']}-{tag.strip(chr(34))}"
    path = os.path.abspath(uri)
    stats = {os.path.basename(each): os.stat(each) for each in [path, *_companions(path)]}
    text = "\n".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats.items())
    size = sum(stat.st_size for stat in stats.values())
    return f"{size}-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:32]}"


def _companions(path: str) -> list[str]:
    """The other files of a multi-file slide, ascending."""
    base, extension = os.path.splitext(path)
    folder = {".mrxs": base, ".dcm": os.path.dirname(path)}.get(extension.lower())
    if folder is None or not os.path.isdir(folder):
        return []
    return sorted(entry.path for entry in os.scandir(folder) if entry.is_file() and entry.path != path)
