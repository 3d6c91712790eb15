"""The run plan: which tiles stand in which global batch of which epoch.

A pure function of the rows, the seed, the epoch and the global batch size. The number of workers does not enter, so a
run that goes on with another number of workers sees the same global batches, and a position inside an epoch is one
number: the step.
"""

import numpy as np

PADDING = -1
_LANES = 64
_BUFFERED_TILES = 8192


def group_ids(shards: np.ndarray, row_groups: np.ndarray) -> np.ndarray:
    """Consecutive ids (int64) of the row groups of tiles that are sorted by shard and row group."""
    new = np.ones(len(shards), bool)
    new[1:] = (shards[1:] != shards[:-1]) | (row_groups[1:] != row_groups[:-1])
    return np.cumsum(new) - 1


def epoch_batches(rows: np.ndarray, groups: np.ndarray, *, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The shuffled global batches of one epoch, int64 [steps, batch_size] of manifest rows, PADDING where none is left.

    Two levels: row groups are permuted, then tiles within windows of consecutive row groups. The sequence is then cut
    into lanes of equal length that advance side by side, so that a batch mixes tiles from all over the set while each
    lane reads its row groups one after another. `rows` are manifest rows, `groups` their row groups' ids.
    """
    random = np.random.default_rng([seed, epoch])
    lanes = max(lane for lane in range(1, min(_LANES, batch_size) + 1) if batch_size % lane == 0)
    order = rows[_two_level_order(groups, _BUFFERED_TILES // lanes, random)]
    steps = -(-len(rows) // batch_size)
    padded = np.full(steps * batch_size, PADDING, np.int64)
    padded[: len(order)] = order
    return padded.reshape(lanes, steps, batch_size // lanes).transpose(1, 0, 2).reshape(steps, batch_size)


def sequential_batches(rows: np.ndarray, *, batch_size: int) -> np.ndarray:
    """The batches of an evaluation: in the manifest's order, int64 [steps, batch_size], the tail padded."""
    steps = -(-len(rows) // batch_size)
    padded = np.full(steps * batch_size, PADDING, np.int64)
    padded[: len(rows)] = rows
    return padded.reshape(steps, batch_size)


def _two_level_order(groups: np.ndarray, window_tiles: int, random: np.random.Generator) -> np.ndarray:
    _, first, size = np.unique(groups, return_index=True, return_counts=True)
    shuffled = random.permutation(len(first))
    order = np.concatenate([np.arange(first[group], first[group] + size[group]) for group in shuffled])
    # A window ends with the row group that fills it: no row group is torn between two windows.
    ends = np.cumsum(size[shuffled])
    window = np.repeat((ends - 1) // max(1, window_tiles), size[shuffled])
    return order[np.lexsort((random.random(len(order)), window))]


def of_worker(batches: np.ndarray, worker: int, workers: int) -> np.ndarray:
    """One worker's equal share, [steps, batch_size / workers], of the global batches."""
    share = batches.shape[1] // workers
    return batches[:, worker * share : (worker + 1) * share]
