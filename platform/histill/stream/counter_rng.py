"""Counter-based random numbers: a draw is a pure function of (seed, epoch, tile, copy)."""

import numpy as np

_ODD = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea & Flood 2014, doi 10.1145/2714064.2660195): a bijection on uint64."""
    values = values.astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def draw_uniform(seed: int, epoch: int, tiles: np.ndarray, copies: np.ndarray, count: int) -> np.ndarray:
    """Draw `count` numbers in [0, 1) for each tile, float64 [tiles, count]; `copies` tells repeats of a tile apart."""
    state = np.zeros(len(tiles), np.uint64)
    for part in (np.full(len(tiles), seed), np.full(len(tiles), epoch), tiles, copies):
        state = splitmix64((state + _ODD) ^ splitmix64(part.astype(np.uint64) + _ODD))
    steps = np.arange(1, count + 1, dtype=np.uint64) * _ODD
    return (splitmix64(state[:, None] + steps) >> np.uint64(11)) * 2.0**-53


def multiset_hash(tiles: np.ndarray) -> int:
    """Hash (int64) of a multiset of tiles: the sum, modulo 2^64, of their mixed numbers.

    Hashes of parts add up to that of the whole in any order, so workers and restarts each contribute theirs. A lost or
    duplicated tile changes the sum, except with a probability of 2^-64.
    """
    return int(splitmix64(tiles.astype(np.uint64) + _ODD).sum(dtype=np.uint64).astype(np.int64))
