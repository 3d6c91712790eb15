"""Measure an engine, and find how many tiles it runs at once in the least time."""

import time
from collections.abc import Callable

from torch import Tensor

from histill.artifacts.formats.made import Answer

_SMALLEST, _GAIN = 4, 0.98  # tiles at once that are measured first; the share of the time that twice as many must take
_RUNS = 3


def find_quickest(build: Callable[[int], Answer], tiles: Tensor, most: int) -> tuple[Answer, int, float]:
    """What `build` makes for the number of tiles at once that takes the least time for each, that number and the time.

    Numbers are doubled, up to `most`, as long as that saves time.
    """
    at_once = min(_SMALLEST, most)
    answer = build(at_once)
    best = answer, at_once, measure_tile(answer, tiles, at_once)
    while at_once < most:
        at_once = min(2 * at_once, most)
        answer = build(at_once)
        took = measure_tile(answer, tiles, at_once)
        if took > _GAIN * best[2]:
            break
        best = answer, at_once, took
    return best


def measure_tile(answer: Answer, tiles: Tensor, at_once: int) -> float:
    """Seconds for a tile, of so many at once: the least of a few runs, since other load only adds to it."""
    batch = tiles.repeat(-(-at_once // len(tiles)), 1, 1, 1)[:at_once]
    times = []
    for _ in range(_RUNS):
        begun = time.perf_counter()
        answer(batch)
        times.append(time.perf_counter() - begun)
    return min(times) / at_once
