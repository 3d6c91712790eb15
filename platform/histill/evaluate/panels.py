"""Make the pictures of tiles that the report shows: small JPEG images, whose captions are text of the page."""

import posixpath
from dataclasses import dataclass

import numpy as np
import torch

from histill.evaluate.evaluator import Evaluator
from histill.evaluate.pictures import COLORS, name_columns
from histill.evaluate.shown_tiles import ShownTile, read_shown

_SIDE = 320  # pixels of an image, at least half of them shown on a phone
_QUALITY = 88


@dataclass(frozen=True)
class Panel:
    """A tile as the report shows it."""

    name: str
    lines: tuple[str, ...]  # below its name
    images: tuple[tuple[str, bytes], ...]  # caption and JPEG

    @property
    def short_name(self) -> str:
        """The name without folders."""
        return posixpath.basename(self.name)


def make_panels(examiner: Evaluator, tiles: np.ndarray) -> list[Panel]:
    """The panels of `tiles` (manifest rows, in this order): for a segmenter tile, reference and model side by side.

    Raises InputError when none can be decoded.
    """
    classes = len(examiner.outputs.scored)
    names = name_columns(examiner) if examiner.outputs.dense else None
    return [_make_panel(tile, names, classes) for tile in read_shown(examiner, tiles)]


def _make_panel(tile: ShownTile, names: tuple[str, str] | None, classes: int) -> Panel:
    if names is None or tile.reference is None or tile.decided is None:
        return Panel(tile.name, tuple(tile.said.splitlines()), (("", _encode(tile.image)),))
    pictures = (
        ("tile", _encode(tile.image)),
        (names[0], _encode(tile.image, tile.reference, classes)),
        (f"{names[1]}, {tile.said}", _encode(tile.image, tile.decided, classes)),
    )
    return Panel(tile.name, (), pictures)


def _encode(image: np.ndarray, decided: torch.Tensor | None = None, classes: int = 0) -> bytes:
    """A tile, uint8 [H, W, 3], as JPEG, with the classes of `decided`, int64 [H, W], outlined."""
    import cv2
    import simplejpeg

    shown = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA if len(image) > _SIDE else cv2.INTER_LINEAR)
    for index in range(1, classes):
        assert decided is not None
        whole = torch.eq(decided, index).numpy().astype(np.uint8)
        inside = cv2.resize(whole, (_SIDE, _SIDE), interpolation=cv2.INTER_NEAREST)
        outlines = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
        cv2.drawContours(shown, outlines, -1, [round(255 * each) for each in COLORS[(index - 1) % len(COLORS)]], 1)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(shown), quality=_QUALITY, colorspace="RGB")
