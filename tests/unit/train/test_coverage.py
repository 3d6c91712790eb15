"""Coverage: an epoch passes if every planned tile was consumed once, however the work was distributed."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from histill.errors import InputError
from histill.stream.counter_rng import multiset_hash
from histill.stream.tile_batch import TileBatch
from histill.train.coverage import ConsumedCounter, DataState, advance, verify_epoch

pytestmark = pytest.mark.unit

PLANNED = np.arange(100) * 3 + 7


def start(**changes: Any) -> DataState:
    return DataState(batch_size=8, tiles_digest="tiles").model_copy(update=changes)


def batch(index: list[int], valid: list[bool] | None = None) -> TileBatch:
    """A batch in which -1 is padding; by default all other tiles could be decoded."""
    return TileBatch(
        student=torch.zeros(len(index), 3, 2, 2, dtype=torch.uint8),
        teacher=None,
        valid=torch.tensor(valid or [tile >= 0 for tile in index], dtype=torch.bool),
        index=torch.tensor(index, dtype=torch.int64),
        label=None,
        mask=None,
        response=None,
        planned=len(index),
    )


def after(*batches: TileBatch, position: DataState | None = None, step: int = 1) -> DataState:
    consumed = ConsumedCounter()
    for each in batches:
        consumed.add(each)
    return advance(position or start(), step, consumed, loss=0.0)


def test_a_batch_is_counted_without_its_padding() -> None:
    position = after(batch([5, 3, -1, 9, -1], [True, False, False, True, False]), step=6)
    expected = {"step": 6, "tiles": 3, "corrupt": 1, "tally": multiset_hash(np.array([3, 5, 9]))}
    assert {name: getattr(position, name) for name in expected} == expected


def test_a_batch_of_padding_counts_nothing() -> None:
    assert after(batch([-1, -1]), step=0) == start()


def test_counting_begins_anew_when_a_position_is_advanced() -> None:
    consumed = ConsumedCounter()
    consumed.add(batch([1, 2]))
    first = advance(start(), 1, consumed, loss=0.0)
    assert advance(first, 1, consumed, loss=0.0) == first
    consumed.add(batch([3]))
    assert advance(first, 2, consumed, loss=0.0).tiles == 3


@given(st.permutations(range(100)), st.lists(st.integers(0, 100), max_size=8))
def test_the_right_tiles_pass_in_any_order_and_partition(order: list[int], cuts: list[int]) -> None:
    """For any number of workers and restarts."""
    position = start()
    edges = [0, *sorted(cuts), 100]
    for number, (first, last) in enumerate(pairwise(edges)):
        position = after(batch(PLANNED[order[first:last]].tolist()), position=position, step=number + 1)
    assert position.tiles == 100
    verify_epoch(position, PLANNED, 0)


def test_a_balanced_epoch_passes_with_its_copies() -> None:
    planned = np.array([4, 4, 4, 8])
    verify_epoch(after(batch([4, 8]), batch([4, 4])), planned, 0)
    with pytest.raises(RuntimeError, match="lost or came twice"):
        verify_epoch(after(batch([4, 8]), batch([8, 4])), planned, 0)


@pytest.mark.parametrize(
    "consumed",
    [PLANNED[:-1], [*PLANNED, PLANNED[5]], [*PLANNED[:-1], PLANNED[5]], [*PLANNED[:-1], 8], [*PLANNED[2:], 9, 8]],
    ids=["lost", "doubled", "one lost and one doubled", "swapped for another", "two swapped, of the same sum"],
)
def test_other_tiles_than_planned_are_an_error(consumed: Any) -> None:
    tiles = np.array(consumed).tolist()
    with pytest.raises(RuntimeError, match=f"epoch 3 consumed {len(tiles)} tiles and the plan has 100") as caught:
        verify_epoch(after(batch(tiles), position=start(epoch=3)), PLANNED, 100)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("limit", "passes"), [(2, True), (1, False), (0, False)])
def test_corrupt_tiles_are_allowed_up_to_the_limit(limit: int, passes: bool) -> None:
    valid = [True] * 98
    halves = batch(PLANNED[:50].tolist(), [*valid[:49], False]), batch(PLANNED[50:].tolist(), [*valid[:49], False])
    position = after(halves[1], position=after(halves[0]))  # in two parts, each within a limit of 1
    assert position.corrupt == 2
    if passes:
        verify_epoch(position, PLANNED, limit)
        return
    with pytest.raises(InputError, match=rf"2 tiles of epoch 0 .* data\.max_corrupt allows {limit}") as caught:
        verify_epoch(position, PLANNED, limit)
    assert "\n" not in str(caught.value)


def test_the_next_epoch_begins_with_nothing_consumed() -> None:
    position = after(batch([1, 2, 3], [True, True, False]), position=start(epoch=4))
    assert position.next_epoch() == start(epoch=5, before=(3, multiset_hash(np.array([1, 2, 3]))))


def test_what_an_epoch_has_consumed_stays_known_through_the_next_alone() -> None:
    first = after(batch([1, 2, 3])).next_epoch()
    second = after(batch([7]), position=first, step=1)
    assert second.before == first.before == (3, multiset_hash(np.array([1, 2, 3])))
    assert second.next_epoch().before == (1, multiset_hash(np.array([7])))


def test_a_position_of_an_older_checkpoint_is_read() -> None:
    older = start(epoch=2, step=9, tiles=5).model_dump(mode="json")
    assert older.pop("before") == [0, 0]
    assert DataState.model_validate_json(json.dumps(older)) == start(epoch=2, step=9, tiles=5)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40))
def test_a_position_comes_back_from_json(fingerprint: int, tiles: int) -> None:
    position = start(epoch=2, step=9, tiles=tiles, corrupt=1, tally=fingerprint, before=(tiles, fingerprint))
    assert DataState.model_validate_json(position.model_dump_json()) == position


@given(st.integers(-(2**63), 2**63 - 1), st.lists(st.integers(0, 2**40), min_size=1, max_size=9))
def test_tallies_wrap_around(fingerprint: int, tiles: list[int]) -> None:
    position = after(batch(tiles), position=start(tally=fingerprint))
    assert -(2**63) <= position.tally < 2**63
    assert (position.tally - fingerprint - multiset_hash(np.array(tiles))) % 2**64 == 0
