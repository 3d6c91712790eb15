"""Reuse the memory of batches: faulting in fresh pages would cost a tenth of decoding a tile into them."""

import weakref

import numpy as np


class Buffers:
    """A pool of arrays; an array returns to it once nothing refers to it, or to a tensor made from it, any more."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, ...], list[np.ndarray]] = {}

    def lend(self, shape: tuple[int, ...]) -> np.ndarray:
        """Lend a uint8 array, which still holds the contents of its last use."""
        free = self._free.setdefault(shape, [])
        try:
            base = free.pop()
        except IndexError:
            base = np.empty(shape, np.uint8)
        lent = base[...]
        weakref.finalize(lent, free.append, base).atexit = False
        return lent
