"""The observer of chaos runs: its judgment of ledgers finds every tile that a run has lost or seen twice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.fault_runs.checkpoint_observer import Observation, against_plan
from histill.stream.counter_rng import multiset_hash
from histill.train.coverage import DataState

pytestmark = pytest.mark.unit

Epochs = list[list[list[int]]]
EPOCHS: Epochs = [[[4, 1], [0, 3], [2]], [[2, 0], [1, 4], [3]], [[0, 1], [2, 3], [4]]]


def observations(consumed: Epochs, at: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """What is seen of a run that consumed these batches: its checkpoints at (epoch, step)."""
    found = {}
    for epoch, step in at:
        tiles = [tile for batch in consumed[epoch][:step] for tile in batch] if epoch < len(consumed) else []
        last = [tile for batch in consumed[epoch - 1] for tile in batch] if epoch else []
        position = DataState(
            epoch=epoch,
            step=step,
            tiles=len(tiles),
            tally=multiset_hash(np.array(tiles, np.int64)),
            before=(len(last), multiset_hash(np.array(last, np.int64))),
            batch_size=2,
            tiles_digest="tiles",
        )
        found[f"step-{epoch:04d}{step:04d}"] = Observation(position.model_dump(mode="json"), 0.0)
    return found


ENDS = [(1, 0), (2, 0), (3, 0)]


@given(st.sets(st.tuples(st.integers(0, 2), st.integers(1, 2))))
def test_an_honest_run_loses_and_repeats_nothing(inside: set[tuple[int, int]]) -> None:
    at = [*ENDS, *inside]
    assert against_plan(observations(EPOCHS, at), EPOCHS) == (0, 0, len(at))


def test_a_run_that_was_stopped_is_judged_by_what_it_has_done() -> None:
    at = [(1, 0), (1, 1)]
    assert against_plan(observations(EPOCHS, at), EPOCHS, finished=False) == (0, 0, 2)
    assert against_plan(observations(EPOCHS, at), EPOCHS)[0] == 10  # of a finished one two epochs are missing


def changed(epoch: int, batch: int, tiles: list[int]) -> Epochs:
    return [
        [tiles if (e, b) == (epoch, batch) else list(one) for b, one in enumerate(batches)]
        for e, batches in enumerate(EPOCHS)
    ]


@pytest.mark.parametrize(
    ("consumed", "lost", "repeated"),
    [
        (changed(1, 1, [1]), 1, 0),
        (changed(2, 2, []), 1, 0),
        (changed(0, 0, [4, 1, 1]), 0, 1),
        (changed(2, 0, [0, 0]), 1, 1),
        (changed(1, 0, [2, 2, 0, 0]), 0, 2),
    ],
    ids=["lost", "last lost", "repeated", "one for another", "a batch twice"],
)
def test_the_ends_of_epochs_show_what_was_lost_or_repeated(consumed: Epochs, lost: int, repeated: int) -> None:
    assert against_plan(observations(consumed, ENDS), EPOCHS) == (lost, repeated, 3)


def test_a_ledger_inside_an_epoch_shows_it_as_well() -> None:
    """Where a tile is lost in one batch and made up for in the next, the end of the epoch is none the wiser."""
    consumed = changed(1, 0, [2])
    consumed[1][1] = [0, 1, 4]
    assert against_plan(observations(consumed, ENDS), EPOCHS) == (0, 0, 3)
    assert against_plan(observations(consumed, [*ENDS, (1, 1), (1, 2)]), EPOCHS) == (1, 0, 5)


@pytest.mark.parametrize("unseen", ENDS)
def test_an_epoch_whose_end_nobody_saw_counts_as_lost(unseen: tuple[int, int]) -> None:
    at = [end for end in ENDS if end != unseen] + [(unseen[0] - 1, 2)]
    assert against_plan(observations(EPOCHS, at), EPOCHS) == (5, 0, 3)


def test_without_a_ledger_all_is_lost() -> None:
    assert against_plan({}, EPOCHS) == (15, 0, 0)
