"""The views that loaders must deliver, and the decoder that all of them use."""

from typing import Any

import cv2
import numpy as np
import simplejpeg

from benchmarks.loaders.tiles import SIDE_PX

SMALL_PX = 128
BATCH = 64
WORKERS = 2  # worker processes of other loaders, decoding threads of ours: one per core
CASES: dict[str, tuple[int, ...]] = {"full": (SIDE_PX,), "small": (SMALL_PX,), "pair": (SIDE_PX, SMALL_PX)}
"""The sides of each case's views, px."""


def decode(jpeg: Any, case: str) -> tuple[np.ndarray, ...]:
    """The views of a tile, each uint8 RGB [side, side, 3]; `jpeg` is anything with the buffer protocol.

    A small view alone is decoded at a quarter of the scale in the DCT domain; together with a full one, it is
    that one's area average, since the tile is fully decoded anyway.
    """
    if case == "small":
        return (simplejpeg.decode_jpeg(jpeg, "RGB", min_height=SMALL_PX, min_width=SMALL_PX, min_factor=1),)
    full = simplejpeg.decode_jpeg(jpeg, "RGB")
    return (full,) if case == "full" else (full, shrink(full))


def shrink(full: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The area average, uint8 [SMALL_PX, SMALL_PX, 3]; halved twice, which costs a third of one step of four."""
    half = cv2.resize(full, (SIDE_PX // 2, SIDE_PX // 2), interpolation=cv2.INTER_AREA)
    return cv2.resize(half, (SMALL_PX, SMALL_PX), dst=out, interpolation=cv2.INTER_AREA)
