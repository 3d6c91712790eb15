"""Open local and remote slide files, and explain why one is refused."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.control import exists
from histill.storage.uris import is_remote
from histill.tiles.openslide_errors import explain_error
from histill.tiles.slide_copies import SlideCopy, copy_frame, copy_slide
from histill.tiles.sources import Unreadable
from histill.tiles.tiff_traits import find_misread

if TYPE_CHECKING:
    from histill.tiles.tiled_slide import TiledSlide

NAMED = 5  # missing slides that an error lists
OPENERS = 8  # slides looked for or opened concurrently
GENERIC = "generic-tiff"  # OpenSlide's name for a TIFF that is not in a scanner's format


@contextlib.contextmanager
def open_slide(uri: str, storage: Storage) -> Iterator["TiledSlide"]:
    """Open a slide; one in object storage is a local copy, which may fetch what is read of it, see `copy_slide`.

    Raises Unreadable when OpenSlide cannot use it, on opening or inside the block.
    """
    with copy_slide(uri, storage) if is_remote(uri) else _no_copy(uri) as copy, _opened(copy, uri) as slide:
        yield slide


@contextlib.contextmanager
def peek_slide(uri: str, storage: Storage) -> Iterator["TiledSlide | None"]:
    """`open_slide` for a slide's properties; None for one in object storage that would have to be fetched whole."""
    with copy_frame(uri, storage) if is_remote(uri) else _no_copy(uri) as copy:
        if copy is None:
            yield None
            return
        with _opened(copy, uri) as slide:
            yield slide


def _no_copy(uri: str) -> contextlib.AbstractContextManager[SlideCopy]:
    """A slide on a disk as it is."""
    return contextlib.nullcontext(SlideCopy(os.path.abspath(uri)))


@contextlib.contextmanager
def _opened(copy: SlideCopy, uri: str) -> Iterator["TiledSlide"]:
    """Open the copy of the slide `uri`, and explain what is wrong with it."""
    import openslide

    from histill.tiles.tiled_slide import TiledSlide

    _check_file(copy.path, uri)
    try:
        with TiledSlide(copy.path, copy.tiles) as slide:
            if slide.properties["openslide.vendor"] == GENERIC and (misread := find_misread(copy.path)):
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
