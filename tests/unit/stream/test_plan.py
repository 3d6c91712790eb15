"""The run plan: every entry once, in an order that depends only on seed and epoch, evenly read and well mixed."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histill.stream.plan import PADDING, EpochPlan, Step, count_repeats, plan_steps, sequential_steps, worker_slice

pytestmark = pytest.mark.unit

moderate = settings(max_examples=60)
group_sizes = st.one_of(
    st.lists(st.integers(1, 30), min_size=1, max_size=80),  # uneven, down to single tiles
    st.tuples(st.integers(1, 40), st.integers(1, 60)).map(lambda shape: [shape[0]] * shape[1]),
)
batch_sizes = st.one_of(st.integers(1, 80), st.sampled_from([2, 3, 7, 31, 61, 67, 79]))
buffers = st.sampled_from([1, 2, 16, 100, 10**6])
seeds = st.integers(0, 2**40)


@st.composite
def worlds(draw: st.DrawFn, count: int = 1) -> tuple[int, ...]:
    """A batch size, and `count` numbers of workers such that each worker has at least one column."""
    batch_size = draw(batch_sizes)
    return batch_size, *(draw(st.integers(1, min(batch_size, 9))) for _ in range(count))


def planned(sizes: list[int], batch_size: int, seed: int = 0, epoch: int = 0, buffer_tiles: int = 128) -> EpochPlan:
    return EpochPlan(np.concatenate([[0], np.cumsum(sizes)]), batch_size, seed, epoch, buffer_tiles)


def global_batches(plan: EpochPlan) -> np.ndarray:
    """Entries [steps, batch size], as one worker sees them."""
    return np.stack([step.entries for step in plan_steps(plan, 0, 1)])


@moderate
@given(group_sizes, batch_sizes, seeds, st.integers(0, 5), buffers)
def test_every_entry_stands_once_in_an_epoch(
    sizes: list[int], batch_size: int, seed: int, epoch: int, buffer_tiles: int
) -> None:
    plan = planned(sizes, batch_size, seed, epoch, buffer_tiles)
    batches = global_batches(plan)
    assert batches.shape == (plan.steps, batch_size) == (-(-sum(sizes) // batch_size), batch_size)
    assert sorted(batches[batches != PADDING]) == list(range(sum(sizes)))
    assert (batches[:-1] != PADDING).all()  # only the last batch is padded
    counts = [step.planned for step in plan_steps(plan, 0, 1)]
    assert counts == (batches != PADDING).sum(1).tolist()


@moderate
@given(group_sizes, batch_sizes, seeds, st.integers(0, 5), buffers)
def test_a_plan_is_a_function_of_its_five_values(
    sizes: list[int], batch_size: int, seed: int, epoch: int, buffer_tiles: int
) -> None:
    first = global_batches(planned(sizes, batch_size, seed, epoch, buffer_tiles))
    np.random.seed(0)  # the global generator has no influence
    assert np.array_equal(first, global_batches(planned(sizes, batch_size, seed, epoch, buffer_tiles)))


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}])
def test_epochs_and_seeds_give_other_orders(change: dict[str, int]) -> None:
    first = global_batches(planned([8] * 25, 16))
    assert (first != global_batches(planned([8] * 25, 16, **change))).mean() > 0.9


@given(st.integers(1, 200), st.data())
def test_columns_are_shared_out_without_gap_and_as_equally_as_can_be(batch_size: int, draw: st.DataObject) -> None:
    workers = draw.draw(st.integers(1, batch_size))
    edges = [worker_slice(worker, workers, batch_size) for worker in range(workers)]
    assert [column for begin, end in edges for column in range(begin, end)] == list(range(batch_size))
    widths = [end - begin for begin, end in edges]
    assert min(widths) >= 1
    assert max(widths) - min(widths) <= 1


@moderate
@given(group_sizes, worlds(), seeds, buffers)
def test_workers_columns_joined_are_the_global_batch(
    sizes: list[int], world: tuple[int, int], seed: int, buffer_tiles: int
) -> None:
    batch_size, workers = world
    plan = planned(sizes, batch_size, seed, 1, buffer_tiles)
    shares = [list(plan_steps(plan, worker, workers)) for worker in range(workers)]
    whole = list(plan_steps(plan, 0, 1))
    assert {len(steps) for steps in shares} == {len(whole)}
    for number, step in enumerate(whole):
        parts = [steps[number] for steps in shares]
        widths = [len(part.entries) for part in parts]
        assert max(widths) - min(widths) <= 1
        assert np.array_equal(np.concatenate([part.entries for part in parts]), step.entries)
        assert {(part.number, part.planned) for part in parts} == {(number, step.planned)}


@moderate
@given(group_sizes, worlds(count=2), buffers, st.data())
def test_an_epoch_whose_world_changes_in_the_middle_has_every_entry_once_and_in_its_batch(
    sizes: list[int], world: tuple[int, int, int], buffer_tiles: int, draw: st.DataObject
) -> None:
    batch_size, first, second = world
    plan = planned(sizes, batch_size, 3, 1, buffer_tiles)
    whole = global_batches(plan)
    change = draw.draw(st.integers(0, plan.steps))
    before = [list(plan_steps(plan, worker, first))[:change] for worker in range(first)]
    after = [list(plan_steps(plan, worker, second, change)) for worker in range(second)]
    assert {len(steps) for steps in after} == {plan.steps - change}
    seen = [steps for shares in (before, after) for steps in zip(*shares, strict=True)]
    assert [{part.number for part in parts} for parts in seen] == [{number} for number in range(plan.steps)]
    for number, parts in enumerate(seen):
        assert np.array_equal(np.concatenate([part.entries for part in parts]), whole[number])


@moderate
@given(group_sizes, worlds(), buffers, st.data())
def test_what_a_step_needs_is_open_and_nothing_is_opened_twice_or_in_vain(
    sizes: list[int], world: tuple[int, int], buffer_tiles: int, draw: st.DataObject
) -> None:
    batch_size, workers = world
    plan = planned(sizes, batch_size, 5, 2, buffer_tiles)
    from_step = draw.draw(st.integers(0, plan.steps))
    for worker in range(workers):
        hold_against_what_is_open(list(plan_steps(plan, worker, workers, from_step)))


def hold_against_what_is_open(steps: list[Step]) -> None:
    waiting: set[int] = set()
    of_last: set[int] = set()  # entries of the step before are still in memory
    opened: list[int] = []
    for step in steps:
        assert (np.diff(step.opened) > 0).all()
        opened += step.opened.tolist()
        waiting |= set(step.opened.tolist())
        needed = {*step.entries[step.entries != PADDING].tolist(), *step.fill.tolist()}
        assert needed <= waiting | of_last
        waiting -= needed
        of_last = needed
    assert len(set(opened)) == len(opened)
    assert not waiting  # what is opened is consumed, and by this worker


@moderate
@given(group_sizes, worlds(), buffers, st.data())
def test_places_that_are_left_show_the_batch_before_whatever_the_world_and_the_start(
    sizes: list[int], world: tuple[int, int], buffer_tiles: int, draw: st.DataObject
) -> None:
    batch_size, workers = world
    plan = planned(sizes, batch_size, 5, 2, buffer_tiles)
    from_step = draw.draw(st.integers(0, plan.steps - 1))
    *others, last = zip(*(plan_steps(plan, worker, workers, from_step) for worker in range(workers)), strict=True)
    assert not sum(len(part.fill) for parts in others for part in parts)
    hold_fill_against(last, global_batches(plan))


def hold_fill_against(last: tuple[Step, ...], batches: np.ndarray) -> None:
    """All workers' fill in the last of `batches` is the same columns of the one before, or its own, repeated."""
    joined = np.concatenate([part.entries for part in last])
    left = joined == PADDING
    expected = batches[-2][left] if len(batches) > 1 else np.resize(joined[~left], len(joined))[left]
    assert [len(part.fill) for part in last] == [int((part.entries == PADDING).sum()) for part in last]
    assert np.array_equal(np.concatenate([part.fill for part in last]), expected)


@moderate
@given(group_sizes, batch_sizes, buffers)
def test_a_window_ends_where_a_row_group_ends(sizes: list[int], batch_size: int, buffer_tiles: int) -> None:
    """A row group is split only where a lane ends; otherwise it would be read once for each of its windows."""
    plan = planned(sizes, batch_size, 1, 0, buffer_tiles)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    torn = 0
    for lane in range(plan.lanes):
        of_windows = [groups[window] for window in plan.windows(lane)]
        assert sum(len(np.unique(window)) for window in of_windows) == len(
            np.unique(np.concatenate([*of_windows, np.zeros(0, int)]))
        )
        torn += sum(len(np.unique(window)) for window in of_windows)
    assert torn <= len(sizes) + plan.lanes - 1


@moderate
@given(group_sizes, batch_sizes, buffers, st.data())
def test_windows_go_on_from_any_position(
    sizes: list[int], batch_size: int, buffer_tiles: int, draw: st.DataObject
) -> None:
    plan = planned(sizes, batch_size, 1, 0, buffer_tiles)
    lane = draw.draw(st.integers(0, plan.lanes - 1))
    whole = np.concatenate([*plan.windows(lane), np.zeros(0, np.int64)])
    position = draw.draw(st.integers(0, len(whole) + 2))
    assert np.array_equal(np.concatenate([*plan.windows(lane, position), np.zeros(0, np.int64)]), whole[position:])


def test_a_lane_reads_its_row_groups_one_after_another() -> None:
    """Within a lane few row groups are open at once, that is, their first tile has been read but not their last."""
    per_group, buffer_tiles = 64, 8192
    plan = planned([per_group] * 512, 32, seed=3, buffer_tiles=buffer_tiles)
    batches = global_batches(plan)
    assert plan.lanes == 32
    window_groups = buffer_tiles // plan.lanes // per_group
    for lane in range(0, 32, 7):
        sequence = batches[:, lane] // per_group
        change = {group: np.flatnonzero(sequence == group) for group in np.unique(sequence)}
        opened = np.zeros(len(sequence) + 1, int)
        for steps in change.values():
            opened[steps[0]] += 1
            opened[steps[-1] + 1] -= 1
        assert opened.cumsum().max() <= 2 * window_groups
        assert len(change) <= len(sequence) / per_group + 2 * window_groups


def test_what_is_held_for_mixing_is_bounded() -> None:
    """Opened entries that are not consumed yet fit the buffer, plus what rounding to row groups adds to each lane."""
    per_group, buffer_tiles, batch_size = 16, 2048, 64
    plan = planned([per_group] * 2000, batch_size, seed=1, buffer_tiles=buffer_tiles)
    held = most = 0
    for step in plan_steps(plan, 0, 1):
        held += len(step.opened)
        most = max(most, held)
        held -= step.planned
    assert held == 0
    assert most <= buffer_tiles + plan.lanes * per_group + batch_size


@pytest.mark.parametrize(
    ("groups", "per_group", "batch_size", "buffer_tiles"),
    [
        (6401, 64, 64, 4096),
        (6405, 64, 32, 4096),
        (4000, 16, 64, 8192),
        (6400, 64, 64, 4096),  # all lanes start with a row group
        (6400, 64, 128, 8192),
    ],
)
def test_reading_is_even(groups: int, per_group: int, batch_size: int, buffer_tiles: int) -> None:
    """Lanes open their next windows at different steps: over ten steps little more is opened than is consumed."""
    plan = planned([per_group] * groups, batch_size, seed=2, buffer_tiles=buffer_tiles)
    opened = np.array([len(step.opened) for step in plan_steps(plan, 0, 1)])
    assert opened[0] <= 0.6 * buffer_tiles + plan.lanes * per_group  # windows are at all stages: half the buffer
    assert np.convolve(opened[1:], np.ones(10), "valid").max() <= 2 * 10 * batch_size


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's coefficient of two sequences without ties."""
    return float(np.corrcoef(np.argsort(np.argsort(first)), np.argsort(np.argsort(second)))[0, 1])


def mean_correlation(batches: np.ndarray) -> float:
    """Mean over the batches of the absolute rank correlation of position in the batch and in storage."""
    return float(np.mean([abs(rank_correlation(batch, np.arange(len(batch)))) for batch in batches]))


def slides_per_batch(batches: np.ndarray, tiles_per_slide: int) -> float:
    return float(np.mean([len(np.unique(batch // tiles_per_slide)) for batch in batches]))


def plans_and_shuffles(batch_size: int, buffer_tiles: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Six epochs of 1200 row groups of 64 tiles as planned, and as many true shuffles; whole batches only.

    Several, because batches within one row group of each lane resemble each other.
    """
    for epoch in range(6):
        batches = global_batches(planned([64] * 1200, batch_size, 0, epoch, buffer_tiles))
        yield batches, np.random.default_rng(epoch).permutation(64 * 1200).reshape(batches.shape)


@pytest.mark.parametrize("batch_size", [32, 64, 96, 128])
def test_a_batch_mixes_tiles_from_all_over_the_set(batch_size: int) -> None:
    """Storage order predicts a tile's batch, and its place in it, no better than under a true shuffle."""
    correlation, slides, spread = [], [], []
    for batches, truly in plans_and_shuffles(batch_size, max(4096, 64 * batch_size)):
        correlation.append([mean_correlation(batches), mean_correlation(truly)])
        slides.append([slides_per_batch(batches, 400), slides_per_batch(truly, 400)])
        spread.append([batches.mean(1).std(), truly.mean(1).std()])
        # five standard deviations of a shuffle of this many row groups
        assert abs(rank_correlation(batches.ravel(), np.arange(batches.size))) < 5 / 1200**0.5
    for measured, bound in ((correlation, 1.2), (spread, 1.2)):
        ours, shuffled = np.mean(measured, axis=0)
        assert ours < bound * shuffled
    ours, shuffled = np.mean(slides, axis=0)
    assert ours > 0.97 * shuffled


def test_more_tiles_held_mix_a_batch_that_is_wider_than_the_lanes() -> None:
    plans = [planned([64] * 1200, 256, 0, 0, held) for held in (8192, 65536)]
    assert plans[0].lane_width == 2
    truly = np.random.default_rng(0).permutation(64 * 1200).reshape(-1, 256)
    few, many = [slides_per_batch(global_batches(plan), 400) for plan in plans]
    shuffled = slides_per_batch(truly, 400)
    assert 0.6 * shuffled < few < 0.9 * shuffled
    assert many > 0.95 * shuffled


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), worlds())
def test_sequential_steps_keep_the_order_and_drop_nothing(sizes: list[int], world: tuple[int, int]) -> None:
    batch_size, workers = world
    starts, entries = np.cumsum([0, *sizes]), sum(sizes)
    shares = [list(sequential_steps(starts, worker, workers, batch_size)) for worker in range(workers)]
    assert {len(steps) for steps in shares} == {-(-entries // batch_size)}
    widths = [len(step.entries) for steps in shares for step in steps]
    assert max(widths) - min(widths) <= 1
    joined = np.concatenate([step.entries for steps in zip(*shares, strict=True) for step in steps])
    assert joined[:entries].tolist() == list(range(entries))
    assert (joined[entries:] == PADDING).all()
    assert sum(step.planned for step in shares[0]) == entries
    hold_fill_against(tuple(steps[-1] for steps in shares), joined.reshape(-1, batch_size))
    for steps in shares:
        hold_against_what_is_open(steps)
        if len(steps) == 1:
            continue  # it opens its fill, too
        # A row group is read once, however many steps it spans.
        groups = [np.unique(np.searchsorted(starts, step.opened, side="right")) for step in steps]
        assert len(np.concatenate(groups)) == len(np.unique(np.concatenate(groups)))
    for worker, steps in enumerate(shares):  # unpadded steps end with the last entry
        shorter = list(sequential_steps(starts, worker, workers, batch_size, padded=False))
        present = [step.entries[step.entries != PADDING].tolist() for step in steps]
        assert [step.entries.tolist() for step in shorter] == [entries for entries in present if entries]
        assert not any(len(step.fill) for step in shorter)
        opened = [entry for step in shorter for entry in step.opened.tolist()]
        assert sorted(opened) == [entry for entries in present for entry in entries]


labels = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(np.array)


@given(labels, seeds, st.integers(0, 9))
def test_a_balanced_epoch_gives_each_group_an_equal_share(groups: np.ndarray, seed: int, epoch: int) -> None:
    copies = count_repeats(groups, seed=seed, epoch=epoch)
    assert copies.dtype == np.int64
    assert copies.sum() == len(groups)
    shares = [int(copies[groups == group].sum()) for group in np.unique(groups)]
    assert max(shares) - min(shares) <= 1
    for group in np.unique(groups):
        of_group = copies[groups == group]
        assert of_group.max() - of_group.min() <= 1
    assert np.array_equal(copies, count_repeats(groups, seed=seed, epoch=epoch))


def test_which_tiles_stand_more_often_is_drawn_anew_for_each_epoch() -> None:
    groups = np.repeat([0, 1], [10, 90])
    drawn = np.stack([count_repeats(groups, seed=4, epoch=epoch) for epoch in range(40)])
    assert set(np.unique(drawn[:, :10])) == {5}
    assert len(np.unique(drawn, axis=0)) == 40
    assert drawn[:, 10:].sum(0).min() > 0  # none is left out forever
    assert not np.array_equal(drawn[0], count_repeats(groups, seed=5, epoch=0))
