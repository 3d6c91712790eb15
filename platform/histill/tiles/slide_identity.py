"""Tell slides apart, and find out whether one has been replaced."""

import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from histill.config.common import Storage
from histill.storage.control import describe
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.storage.uris import is_remote
from histill.tiles.slide_copies import CHUNK
from histill.tiles.slide_parts import list_companions

if TYPE_CHECKING:
    from openslide import OpenSlide


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

    It includes the folder with the file's name (MIRAX), or the other DICOM files in the file's folder; in object
    storage also the files that one of VMS or VMU names.

    Raises FileNotFoundError when there is none, and InputError when the storage refuses.
    """
    if is_remote(uri):
        own, others = describe(uri, storage), list_companions(uri, storage)
        if not others:
            return f"{own.size}-{own.tag}"
        states = {os.path.basename(uri): own, **others}
        return _join({name: (state.size, state.tag) for name, state in states.items()})
    path = os.path.abspath(uri)
    stats = {os.path.basename(each): os.stat(each) for each in [path, *_companions(path)]}
    return _join({name: (stat.st_size, str(stat.st_mtime_ns)) for name, stat in stats.items()})


def _join(files: Mapping[str, tuple[int, str]]) -> str:
    """The fingerprint of several files, from the size of each and what changes with it."""
    text = "\n".join(f"{name}:{size}:{state}" for name, (size, state) in files.items())
    size = sum(size for size, _ in files.values())
    return f"{size}-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:32]}"


def _companions(path: str) -> list[str]:
    """The other files of a multi-file slide on a disk, ascending."""
    base, extension = os.path.splitext(path)
    folder = {".mrxs": base, ".dcm": os.path.dirname(path)}.get(extension.lower())
    if folder is None or not os.path.isdir(folder):
        return []
    return sorted(entry.path for entry in os.scandir(folder) if entry.is_file() and entry.path != path)
