"""The run plan: every tile once, in an order that depends on the seed and the epoch alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histill.stream.plan import PADDING, epoch_batches, group_ids, of_worker, sequential_batches

pytestmark = pytest.mark.unit


def grouped(tiles: int, per_group: int) -> tuple[np.ndarray, np.ndarray]:
    """Manifest rows (with gaps, as of one split) and their row groups."""
    return np.arange(tiles) * 2 + 5, np.arange(tiles) // per_group


sets = st.tuples(st.integers(1, 400), st.integers(1, 40))
batch_sizes = st.integers(1, 80)
seeds = st.integers(0, 2**32)


@given(sets, batch_sizes, seeds, st.integers(0, 5))
def test_every_tile_stands_once_in_an_epoch(shape: tuple[int, int], batch_size: int, seed: int, epoch: int) -> None:
    rows, groups = grouped(*shape)
    batches = epoch_batches(rows, groups, batch_size=batch_size, seed=seed, epoch=epoch)
    assert batches.shape == (-(-len(rows) // batch_size), batch_size)
    assert sorted(batches[batches != PADDING]) == sorted(rows)
    assert (batches == PADDING).sum() == batches.size - len(rows) < batch_size


@given(sets, batch_sizes, seeds)
def test_plan_is_a_function_of_rows_seed_and_epoch(shape: tuple[int, int], batch_size: int, seed: int) -> None:
    rows, groups = grouped(*shape)
    first = epoch_batches(rows, groups, batch_size=batch_size, seed=seed, epoch=1)
    np.random.seed(0)  # the global generator has no say
    assert np.array_equal(first, epoch_batches(rows, groups, batch_size=batch_size, seed=seed, epoch=1))


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}])
def test_epochs_and_seeds_give_other_orders(change: dict[str, int]) -> None:
    rows, groups = grouped(200, 8)
    first = epoch_batches(rows, groups, batch_size=16, seed=0, epoch=0)
    other = epoch_batches(rows, groups, **({"batch_size": 16, "seed": 0, "epoch": 0} | change))
    assert (first != other).mean() > 0.9


@given(sets, st.integers(1, 8), st.sampled_from([1, 2, 3, 4, 6]), seeds)
def test_workers_shares_are_the_global_batch(shape: tuple[int, int], share: int, workers: int, seed: int) -> None:
    rows, groups = grouped(*shape)
    batches = epoch_batches(rows, groups, batch_size=share * workers, seed=seed, epoch=0)
    shares = [of_worker(batches, worker, workers) for worker in range(workers)]
    assert all(part.shape == (len(batches), share) for part in shares)
    assert np.array_equal(np.concatenate(shares, axis=1), batches)


@given(sets, batch_sizes)
def test_sequential_batches_keep_the_order_and_drop_nothing(shape: tuple[int, int], batch_size: int) -> None:
    rows, _ = grouped(*shape)
    batches = sequential_batches(rows, batch_size=batch_size)
    assert np.array_equal(batches[batches != PADDING], rows)
    assert (batches.ravel()[: len(rows)] != PADDING).all()


def test_group_ids_number_the_row_groups_of_sorted_tiles() -> None:
    shards = np.array(["a", "a", "a", "b", "b", "c"], object)
    assert group_ids(shards, np.array([0, 0, 2, 2, 3, 3])).tolist() == [0, 0, 1, 2, 3, 4]


def test_a_lane_reads_its_row_groups_one_after_another() -> None:
    """Within a lane few row groups are open at once; an open one is one whose first tile is read, its last is not."""
    per_group, batch_size = 64, 32
    rows, groups = np.arange(64 * 512), np.arange(64 * 512) // per_group
    batches = epoch_batches(rows, groups, batch_size=batch_size, seed=3, epoch=0)
    window_groups = 8192 // batch_size // per_group
    for lane in range(0, batch_size, 7):
        sequence = groups[batches[:, lane]]
        change = {group: np.flatnonzero(sequence == group) for group in np.unique(sequence)}
        opened = np.zeros(len(sequence) + 1, int)
        for steps in change.values():
            opened[steps[0]] += 1
            opened[steps[-1] + 1] -= 1
        assert opened.cumsum().max() <= 2 * window_groups
        assert len(change) <= len(sequence) / per_group + 2 * window_groups


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_a_batch_mixes_tiles_from_all_over_the_set(seed: int) -> None:
    """Place in the storage says as little of a tile's place in its batch, or of its batch, as under a true shuffle."""
    tiles, batch_size = 64 * 300, 32
    rows, groups = np.arange(tiles), np.arange(tiles) // 64
    batches = epoch_batches(rows, groups, batch_size=batch_size, seed=seed, epoch=0)
    truly = np.random.default_rng(seed).permutation(rows).reshape(batches.shape)
    assert batches.mean(1).std() < 1.5 * truly.mean(1).std()
    assert mean_correlation(batches) < 1.5 * mean_correlation(truly)
    assert abs(rank_correlation(batches.ravel(), rows)) < 0.3  # five deviations of a shuffle of 300 row groups


def mean_correlation(batches: np.ndarray) -> float:
    """Mean over the batches of the absolute rank correlation of position and place in the storage."""
    return float(np.mean([abs(rank_correlation(batch, np.arange(len(batch)))) for batch in batches]))


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's coefficient of two sequences without ties."""
    return float(np.corrcoef(np.argsort(np.argsort(first)), np.argsort(np.argsort(second)))[0, 1])
