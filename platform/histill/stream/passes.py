"""Plan a pass over the tiles of a stream. Free of torch, so that a task that only plans starts quickly."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from histill.config.augment import Augment
from histill.stream.index import SampleIndex, balance_groups
from histill.stream.plan import EpochPlan, Step, plan_steps, sequential_steps
from histill.stream.views import UPRIGHT
from histill.tiles.manifest import Manifest

_LEAST_BUFFER_TILES, _BUFFERED_BATCHES = 4096, 64


@dataclass(frozen=True)
class Series:
    """Passes that differ by their number alone: the epochs of a training, or exact passes for evaluation."""

    shuffled: bool  # False: exact passes, in the order of the manifest
    seed: int = 0
    augment: Augment = UPRIGHT
    padded: bool = True  # whether the last batch of an exact pass is padded or shorter


@dataclass(frozen=True)
class Pass:
    """One pass of a series from a step on."""

    series: Series
    epoch: int = 0
    from_step: int = 0


@dataclass(frozen=True)
class Planner:
    """The order in which one worker sees the tiles of a split; the fields are those of `TileStream`."""

    manifest: Manifest
    split: str
    batch_size: int
    worker: int
    workers: int
    cases: frozenset[str] | None
    only: np.ndarray | None
    buffer_tiles: int | None
    balance: str | None
    groups: np.ndarray | None

    @cached_property
    def places(self) -> SampleIndex:
        """The tiles to stream. Raises InputError when the split is empty."""
        if self.only is not None:
            return SampleIndex.at(self.manifest, self.only)
        return SampleIndex.of(self.manifest, self.split, self.cases)

    @property
    def shuffled_tiles(self) -> int:
        """Size of the shuffle buffer, over all workers."""
        return self.buffer_tiles or max(_LEAST_BUFFER_TILES, _BUFFERED_BATCHES * self.batch_size)

    def places_of(self, epoch: int, seed: int) -> SampleIndex:
        """The tiles of a shuffled epoch."""
        if self.groups is not None:
            groups = np.unique(self.groups[np.asarray(self.places.tiles)], return_inverse=True)[1]
        elif self.balance is not None:
            groups = balance_groups(self.manifest, self.places.tiles, self.balance)
        else:
            return self.places
        return self.places.balanced(groups, seed=seed, epoch=epoch)

    def plan(self, of: Pass) -> tuple[Iterator[Step], SampleIndex]:
        """The worker's steps of a pass, and where their entries are."""
        share, series = (self.worker, self.workers), of.series
        if not series.shuffled:
            starts = self.places.starts
            return sequential_steps(starts, *share, self.batch_size, padded=series.padded), self.places
        places = self.places_of(of.epoch, series.seed)
        plan = EpochPlan(places.starts, self.batch_size, series.seed, of.epoch, self.shuffled_tiles)
        return plan_steps(plan, *share, of.from_step), places
