"""The run plan: which tile is at which position of which epoch.

The plan is a pure function of the tiles, the seed, the epoch and the global batch size. It does not depend on the
number of workers, so a run that resumes with another number of them sees the same global batches, and a position in an
epoch is a single number: the step. It is evaluated lazily: the only up-front cost of an epoch is a permutation of its
row groups.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

PADDING = -1
_LANES = 128
_GROUPS_PER_LANE = 8
_NOTHING = np.zeros(0, np.int64)
_OF_GROUPS, _OF_WINDOWS, _OF_BALANCE = 1, 2, 3  # part of a generator's seed, so that no two draw the same numbers


@dataclass(frozen=True)
class EpochPlan:
    """The shuffled global batches of one epoch.

    An entry is one occurrence of a tile. Entries are numbered in storage order: row group g holds the entries
    `starts[g]` to `starts[g + 1] - 1`.

    Shuffling has two levels: the row groups are permuted, then the entries within windows of consecutive row groups.
    The permuted sequence is cut into lanes that advance in parallel, so that a batch mixes tiles from all over the set
    while each lane reads its row groups one after another.
    """

    starts: np.ndarray  # int64 [groups + 1]
    batch_size: int
    seed: int
    epoch: int
    buffer_tiles: int  # size of the shuffle buffer, over all lanes

    @property
    def entries(self) -> int:
        return int(self.starts[-1])

    @property
    def steps(self) -> int:
        """Global batches, the last of which may be padded."""
        return -(-self.entries // self.batch_size)

    @cached_property
    def lanes(self) -> int:
        """The number of lanes, a divisor of the batch size.

        It is small when there are few row groups, since the end of a lane splits one in two, and when they are large,
        since every lane buffers at least one.
        """
        groups = len(self.starts) - 1
        held = self.buffer_tiles * groups // max(1, self.entries)  # row groups that fill the buffer
        most = max(1, min(_LANES, self.batch_size, groups // _GROUPS_PER_LANE, held))
        return max(lane for lane in range(1, most + 1) if self.batch_size % lane == 0)

    @property
    def lane_width(self) -> int:
        """Columns of a batch that one lane fills."""
        return self.batch_size // self.lanes

    @cached_property
    def _order(self) -> np.ndarray:
        numbers = np.arange(len(self.starts) - 1, dtype=np.int32)  # half the memory, and the same draws
        np.random.default_rng([self.seed, self.epoch, _OF_GROUPS]).shuffle(numbers)
        return numbers

    @cached_property
    def _ends(self) -> np.ndarray:
        """Where each row group of the permuted sequence ends."""
        ends = np.diff(self.starts)[self._order]
        return np.cumsum(ends, out=ends)

    @cached_property
    def _lane_starts(self) -> np.ndarray:
        """Where each lane of the permuted sequence starts, and the end, such that only the last batch is padded."""
        full, rest = self.steps - 1, self.entries - (self.steps - 1) * self.batch_size
        last = np.clip(rest - np.arange(self.lanes) * self.lane_width, 0, self.lane_width)
        return np.concatenate([[0], np.cumsum(full * self.lane_width + last)])

    def windows(self, lane: int, position: int = 0) -> Iterator[np.ndarray]:
        """Yield the shuffled entries (int64) of `lane` from `position` on, window by window."""
        first, last = int(self._lane_starts[lane]), int(self._lane_starts[lane + 1])
        length = max(1, self.buffer_tiles // self.lanes)
        phase = length * lane // self.lanes
        at = first + position
        number = (at - first + phase) // length
        while number and self._window_end(lane, number - 1, first, last, length, phase) > at:
            number -= 1
        while at < last:
            start = self._window_end(lane, number - 1, first, last, length, phase) if number else first
            end = self._window_end(lane, number, first, last, length, phase)
            if end > at:
                random = np.random.default_rng([self.seed, self.epoch, _OF_WINDOWS, lane, number])
                yield self._entries(start, end)[random.permutation(end - start)][at - start :]
                at = end
            number += 1

    def _window_end(self, lane: int, number: int, first: int, last: int, length: int, phase: int) -> int:
        """Where a window ends: with the row group that fills it, so that windows of a lane never split a row group."""
        cut = first + (number + 1) * length - phase
        return last if cut >= last else min(last, int(self._ends[np.searchsorted(self._ends, cut)]))

    def _entries(self, start: int, end: int) -> np.ndarray:
        places = np.arange(start, end)
        index = np.searchsorted(self._ends, places, side="right")
        groups = self._order[index]
        return self.starts[groups + 1] - self._ends[index] + places


@dataclass(frozen=True)
class Step:
    """One worker's part of one global batch."""

    number: int
    entries: np.ndarray  # int64 [the worker's columns], PADDING past the last entry
    opened: np.ndarray  # int64, ascending: entries to be read now, for this step or later ones of the same window
    planned: int  # entries in the whole global batch
    fill: np.ndarray = field(default_factory=lambda: _NOTHING)  # int64 [padded places], shown there instead


def worker_slice(worker: int, workers: int, batch_size: int) -> tuple[int, int]:
    """Start and end of `worker`'s columns of a global batch; the shares of workers differ by one column at most."""
    return batch_size * worker // workers, batch_size * (worker + 1) // workers


def plan_steps(plan: EpochPlan, worker: int, workers: int, from_step: int = 0) -> Iterator[Step]:
    """Yield the steps of `worker` of `workers` from `from_step` on: its columns of the global batches.

    Padded places of the last batch show the entries that were there in the batch before, so that batch statistics are
    of as many tiles as ever, none of them twice. If an epoch has only one batch, it repeats its own entries.
    """
    begin, end = worker_slice(worker, workers, plan.batch_size)
    last = plan.steps - 1
    left = np.arange(begin, end) >= plan.entries - last * plan.batch_size  # padded in the last batch
    first = max(0, min(from_step, last - 1)) if left.any() else from_step
    before = unread = _NOTHING
    for number, (entries, opened) in enumerate(_columns(plan, begin, end, first), start=first):
        if number < from_step:  # already consumed
            before, unread = entries, np.setdiff1d(opened, entries[~left])
            continue
        fill = _NOTHING
        if number == last and left.any():
            fill = before[left] if last else _repeat_batch(plan, np.arange(begin, end)[left])
            unread = unread if last else fill
        planned = min(plan.batch_size, plan.entries - number * plan.batch_size)
        yield Step(number, entries, np.union1d(opened, unread), planned, fill)
        before, unread = entries, _NOTHING


def _repeat_batch(plan: EpochPlan, columns: np.ndarray) -> np.ndarray:
    """Fill the `columns` past the entries of an epoch's only batch with these entries, repeated."""
    whole, _ = next(_columns(plan, 0, plan.batch_size, 0))
    return whole[columns % plan.entries]


def _columns(plan: EpochPlan, begin: int, end: int, from_step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each step, the entries of the columns `begin` to `end` and the entries that are opened, ascending."""
    width = plan.lane_width
    lanes = [
        _lane_steps(plan, lane, max(begin - lane * width, 0), min(end - lane * width, width), from_step)
        for lane in range(begin // width, -(-end // width))
    ]
    for _ in range(from_step, plan.steps):
        parts = [next(lane) for lane in lanes]
        opened = np.sort(np.concatenate([opened for _, opened in parts]))
        yield np.concatenate([entries for entries, _ in parts]), opened


def _lane_steps(
    plan: EpochPlan, lane: int, begin: int, end: int, from_step: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each step, the entries of a lane's columns `begin` to `end`, and all of theirs in newly opened windows."""
    width = plan.lane_width
    windows = plan.windows(lane, from_step * width)
    waiting, column = _NOTHING, 0  # `column` of the first entry of the next window
    # Lanes that all begin with a row group would all need their next one at the same step. Each opens it earlier, by
    # a different fraction of a row group, so that reads are spread evenly.
    needed = width + plan.entries * lane // (plan.lanes * (len(plan.starts) - 1))
    for _ in range(from_step, plan.steps):
        opened = []
        while len(waiting) < needed and (window := next(windows, None)) is not None:
            columns = (column + np.arange(len(window))) % width
            opened.append(window[(columns >= begin) & (columns < end)])
            waiting, column = np.concatenate([waiting, window]), (column + len(window)) % width
        entries, waiting = waiting[:width], waiting[width:]
        if len(entries) < width:
            entries = np.concatenate([entries, np.full(width - len(entries), PADDING)])
        yield entries[begin:end], np.concatenate(opened) if opened else _NOTHING


def sequential_steps(
    starts: np.ndarray, worker: int, workers: int, batch_size: int, *, padded: bool = True
) -> Iterator[Step]:
    """Yield the steps of an evaluation: every entry in storage order; `starts` as in `EpochPlan`.

    The last batch is padded and filled as in `plan_steps`, or shorter if not `padded`.
    """
    begin, end = worker_slice(worker, workers, batch_size)
    entries, opened_to = int(starts[-1]), 0
    for number in range(-(-entries // batch_size)):
        places = number * batch_size + np.arange(begin, end)
        if not padded and not len(places := places[places < entries]):
            return
        left = places >= entries
        fill = places[left] - batch_size if number else places[left] % entries
        mine = np.where(left, PADDING, places)
        opened = _NOTHING
        if mine.max() >= opened_to:  # open a row group once, for all entries that this worker needs
            last = int(starts[np.searchsorted(starts, mine.max(), side="right")])
            opened = np.arange(opened_to, last)
            opened = opened[(opened % batch_size >= begin) & (opened % batch_size < end)]
            opened_to = last
        opened = opened if number else np.union1d(opened, fill)
        yield Step(number, mine, opened, min(batch_size, entries - number * batch_size), fill)


def count_repeats(groups: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """How often each tile occurs in a balanced epoch, int64 [tiles]; the sum is the number of tiles.

    `groups` (int64 [tiles], 0..G-1) are the classes or slides to balance: each gets an equal share of the epoch. Within
    a group the counts of tiles differ by at most one; which tiles occur once more is redrawn for each epoch.
    """
    size = np.bincount(groups)
    present = np.flatnonzero(size)
    random = np.random.default_rng([seed, epoch, _OF_BALANCE])
    quota = np.zeros(len(size), np.int64)
    quota[present] = len(groups) // len(present)
    quota[random.permutation(present)[: len(groups) % len(present)]] += 1
    by_group = np.lexsort((random.random(len(groups)), groups))
    rank = np.empty(len(groups), np.int64)
    rank[by_group] = np.arange(len(groups)) - np.repeat(np.cumsum(size) - size, size)
    return quota[groups] // size[groups] + (rank < quota[groups] % size[groups])
