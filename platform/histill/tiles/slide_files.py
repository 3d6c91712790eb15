"""The file of a slide: opened wherever it lies, and told from others."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from histill.config.common import Storage
from histill.storage.filesystems import arrow_filesystem, control_filesystem, storage_errors
from histill.storage.uris import is_s3
from histill.tiles.sources import Unreadable

if TYPE_CHECKING:
    from openslide import OpenSlide

CHUNK = 16 * 2**20  # bytes read at once


@contextlib.contextmanager
def opened(uri: str, storage: Storage) -> Iterator["OpenSlide"]:
    """The slide, open; one in object storage is fetched into a temporary file that is removed at the end.

    Raises Unreadable when OpenSlide cannot use it, be it on opening or inside the block.
    """
    import openslide

    with contextlib.ExitStack() as stack:
        path = stack.enter_context(_local_copy(uri, storage)) if is_s3(uri) else os.path.abspath(uri)
        if not os.path.isfile(path):
            raise Unreadable(f"slide {uri} does not exist; correct its path.")
        try:
            yield stack.enter_context(openslide.OpenSlide(path))
        except openslide.OpenSlideUnsupportedFormatError:
            raise Unreadable(
                f"slide {uri} is not in a format that OpenSlide reads; convert it to a pyramidal TIFF."
            ) from None
        except openslide.OpenSlideError as error:
            raise Unreadable(f"slide {uri} is damaged ({error}); replace it.") from None


@contextlib.contextmanager
def _local_copy(uri: str, storage: Storage) -> Iterator[str]:
    import pyarrow.fs as fs

    filesystem, key = arrow_filesystem(uri, storage)
    with tempfile.TemporaryDirectory(prefix="histill-slide-") as folder:
        path = os.path.join(folder, os.path.basename(key))
        try:
            with storage_errors(uri, storage):
                fs.copy_files(key, path, source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
        except FileNotFoundError:
            raise Unreadable(f"slide {uri} does not exist; correct its path.") from None
        yield path


def identify_slide(slide: "OpenSlide", uri: str, storage: Storage) -> str:
    """What tells an open slide from all others, and is the same for each copy and each file of it.

    It is OpenSlide's quickhash-1 (over the smallest level and the scanner's records), or the SHA-256 of the file
    where OpenSlide makes none, since the smallest level is large.
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
    """What changes when the slide at `uri` is replaced, without reading it: sizes and times, or size and ETag.

    A folder beside the file that has its name (MIRAX) and the other DICOM files of its folder count as well.

    Raises FileNotFoundError when there is none, and InputError when the storage refuses.
    """
    if is_s3(uri):
        filesystem, key = control_filesystem(uri, storage)
        with storage_errors(uri, storage):
            about = filesystem.info(key)
        return f"{about['size']}-{str(about.get('ETag', '')).strip(chr(34))}"
    path = os.path.abspath(uri)
    found = hashlib.sha256()
    for each in [path, *_companions(path)]:
        stat = os.stat(each)
        found.update(f"{os.path.basename(each)}:{stat.st_size}:{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return found.hexdigest()[:32]


def _companions(path: str) -> list[str]:
    """The other files of a slide of several, ascending."""
    base, extension = os.path.splitext(path)
    folder = {".mrxs": base, ".dcm": os.path.dirname(path)}.get(extension.lower())
    if folder is None or not os.path.isdir(folder):
        return []
    return sorted(entry.path for entry in os.scandir(folder) if entry.is_file() and entry.path != path)
