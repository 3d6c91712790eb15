"""Counter-based random numbers: what they depend on, that they are uniform, and what a multiset hash detects."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histill.stream.counter_rng import draw_uniform, multiset_hash, splitmix64

pytestmark = pytest.mark.unit

TILES = np.arange(400)
FIRST = np.zeros(400, np.int64)  # copies


def test_splitmix64_of_known_states() -> None:
    """The first outputs of the published generator for seed 0: the finalizer of 1, 2, 3 times its odd constant."""
    states = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert splitmix64(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=50))
def test_mixing_is_one_to_one(values: list[int]) -> None:
    assert len(set(splitmix64(np.array(values, np.uint64)).tolist())) == len(values)


def test_a_draw_is_a_function_of_seed_epoch_tile_and_copy() -> None:
    drawn = draw_uniform(1, 2, TILES, FIRST, 12)
    assert drawn.shape == (400, 12)
    assert drawn.dtype == np.float64
    assert np.array_equal(drawn, draw_uniform(1, 2, TILES, FIRST, 12))
    chosen = np.array([17, 3, 3, 399])  # in any order, whichever tiles are drawn together
    assert np.array_equal(draw_uniform(1, 2, chosen, np.zeros(4, np.int64), 12), drawn[chosen])
    assert np.array_equal(draw_uniform(1, 2, TILES, FIRST, 5), drawn[:, :5])


@pytest.mark.parametrize(
    ("seed", "epoch", "tiles", "copies"),
    [
        (2, 2, TILES, FIRST),
        (1, 3, TILES, FIRST),
        (1, 2, TILES + 400, FIRST),
        (1, 2, TILES, FIRST + 1),
        (2, 1, TILES, FIRST),
    ],
    ids=["seed", "epoch", "tile", "copy", "seed and epoch swapped"],
)
def test_a_draw_depends_on_each_of_them(seed: int, epoch: int, tiles: np.ndarray, copies: np.ndarray) -> None:
    assert not (draw_uniform(1, 2, TILES, FIRST, 12) == draw_uniform(seed, epoch, tiles, copies, 12)).any()


@given(st.integers(0, 2**62), st.integers(0, 2**40), st.integers(0, 2**40))
def test_draws_are_of_0_to_1(seed: int, epoch: int, tile: int) -> None:
    drawn = draw_uniform(seed, epoch, np.array([tile]), np.array([0]), 12)
    assert (drawn >= 0).all()
    assert (drawn < 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_draws_are_even_and_independent(seed: int) -> None:
    drawn = draw_uniform(seed, 0, np.arange(20_000), np.zeros(20_000, np.int64), 12)
    for column in drawn.T:  # chi-square of 16 cells, 15 degrees of freedom: 44.3 is exceeded once in 10 000
        counts = np.bincount((column * 16).astype(int), minlength=16)
        assert ((counts - 1250) ** 2 / 1250).sum() < 50
    between = np.corrcoef(
        np.hstack([drawn, draw_uniform(seed, 1, np.arange(20_000), np.zeros(20_000, np.int64), 12)]).T
    )
    assert np.abs(between - np.eye(24)).max() < 5 / 20_000**0.5
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 5 / 20_000**0.5  # neighboring tiles


tiles = st.lists(st.integers(0, 2**40), min_size=1, max_size=40)


@given(tiles, st.randoms(use_true_random=False))
def test_a_tally_does_not_depend_on_order(rows: list[int], random: object) -> None:
    shuffled = rows.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert multiset_hash(np.array(shuffled)) == multiset_hash(np.array(rows))


@given(tiles, st.data())
def test_tallies_of_parts_add_up(rows: list[int], draw: st.DataObject) -> None:
    cut = draw.draw(st.integers(0, len(rows)))
    parts = [multiset_hash(np.array(part, np.int64)) for part in (rows[:cut], rows[cut:])]
    assert all(-(2**63) <= part < 2**63 for part in parts)
    assert (sum(parts) - multiset_hash(np.array(rows))) % 2**64 == 0


@given(tiles, st.data())
def test_a_tally_sees_a_loss_a_double_and_a_swap(rows: list[int], draw: st.DataObject) -> None:
    whole = multiset_hash(np.array(rows))
    place = draw.draw(st.integers(0, len(rows) - 1))
    other = draw.draw(st.integers(0, 2**40).filter(lambda tile: tile != rows[place]))
    assert multiset_hash(np.array(rows[:place] + rows[place + 1 :], np.int64)) != whole
    assert multiset_hash(np.array([*rows, rows[place]])) != whole
    assert multiset_hash(np.array([*rows[:place], other, *rows[place + 1 :]])) != whole


def test_a_tally_sees_neighbors_swapped_for_others_of_the_same_sum() -> None:
    assert multiset_hash(np.array([1, 4])) != multiset_hash(np.array([2, 3]))
    assert multiset_hash(np.zeros(0, np.int64)) == 0 != multiset_hash(np.array([0]))
