"""File names for slides: readable, safe on every store and system, and unique."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable

_MOST_BYTES = 150  # of the 255 that file systems allow; extensions and temporary names need the rest
_DIGITS = 8  # of the digest appended to a name


def name_files(slides: Iterable[str]) -> dict[str, str]:
    """A base name, without extension, for the files of each of `slides`.

    Letters and digits of every script are kept; characters special to paths, URLs or shells become underscores. Names
    that would then collide, also on systems that ignore case or Unicode composition, get digits of the slide's digest
    appended.
    """
    plain = {slide: _make_safe(slide) for slide in slides}
    count = Counter(_fold(name) for name in plain.values())
    return {
        slide: name if count[_fold(name)] == 1 else f"{name}-{hashlib.sha256(slide.encode()).hexdigest()[:_DIGITS]}"
        for slide, name in plain.items()
    }


def _make_safe(slide: str) -> str:
    composed = unicodedata.normalize("NFC", slide)
    kept = "".join(each if each in "._-" or unicodedata.category(each)[0] in "LMN" else "_" for each in composed)
    cut = kept.encode()[:_MOST_BYTES].decode(errors="ignore")
    return cut.strip(". ") or "slide"


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
