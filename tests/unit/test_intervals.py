"""The bootstrap over cases, and parts of a split."""

import math

import numpy as np
import pytest

from histill.evaluate.answers import Answers
from histill.evaluate.intervals import drawn_figures, interval, paired_difference
from histill.evaluate.parts import STAIN_GROUPS, by_slide, by_stain

pytestmark = pytest.mark.unit


def answers(right: list[bool], stains: list[float] | None = None) -> Answers:
    """A classifier of two classes that is sure, and right where it says so; tiles of both classes take turns."""
    truth = np.arange(len(right)) % 2
    decided = np.where(right, truth, 1 - truth)
    haematoxylin = np.array(stains if stains is not None else [0.5] * len(right))
    return Answers(
        kind="classification",
        rows=np.arange(len(right)),
        said=np.eye(2, dtype=np.float32)[decided] * 9,
        truth=truth,
        stains=np.stack([haematoxylin, 1 - haematoxylin], 1).astype(np.float32),
        corrupt=0,
    )


def test_draws_are_of_whole_cases() -> None:
    """One case all right and one all wrong: a draw of two cases holds both, twice the one or twice the other."""
    cases = np.array(["a"] * 6 + ["b"] * 6)
    found = drawn_figures(answers([True] * 6 + [False] * 6), cases, 2000, seed=0)["accuracy"]
    values, counts = np.unique(found, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(counts / 2000, [0.25, 0.5, 0.25], atol=0.04)


def test_the_interval_is_as_wide_as_cases_differ() -> None:
    """400 cases of one tile, 70 % of them right: the standard error is sqrt(0.7 * 0.3 / 400)."""
    random = np.random.default_rng(0)
    right = [bool(each) for each in random.random(400) < 0.7]
    low, high = interval(drawn_figures(answers(right), np.arange(400), 2000, seed=1)["accuracy"])
    share = float(np.mean(right))
    error = math.sqrt(share * (1 - share) / 400)
    assert (low, high) == (pytest.approx(share - 1.96 * error, abs=0.01), pytest.approx(share + 1.96 * error, abs=0.01))


def test_the_same_seed_draws_the_same_cases_for_every_model() -> None:
    cases = np.repeat(np.arange(10), 4)
    one, same, other = (
        drawn_figures(answers([bool(tile % 3) for tile in range(40)]), cases, 50, seed=seed)["accuracy"]
        for seed in (0, 0, 1)
    )
    assert (one == same).all()
    assert (one != other).any()


def test_an_unknown_figure_has_no_interval() -> None:
    assert all(map(math.isnan, interval(np.array([math.nan, math.nan]))))
    assert interval(np.array([math.nan, 1.0])) == (1.0, 1.0)


def test_a_single_case_has_no_spread() -> None:
    one, other = answers([True] * 8), answers([True, False] * 4)
    difference, spread = paired_difference(one, other, np.array(["a"] * 8), "accuracy", 50)
    assert difference == 0.5
    assert all(map(math.isnan, spread))
    low, high = paired_difference(one, other, np.array(["a", "b"] * 4), "accuracy", 50)[1]
    assert (low, high) == (0.0, 1.0)


def test_slides_come_with_the_worst_first() -> None:
    slides = np.array(["good"] * 4 + ["bad"] * 4 + ["middling"] * 4)
    found = by_slide(answers([True] * 4 + [False] * 4 + [True, True, True, False]), slides)
    assert list(found) == ["bad", "middling", "good"]
    assert [part.tiles for part in found.values()] == [4, 4, 4]
    assert [part.figure for part in found.values()] == [0.0, 0.75, 1.0]


def test_stain_groups_are_of_slides_by_their_haematoxylin() -> None:
    slides = np.repeat(["c", "a", "b"], 4)
    right = [True] * 4 + [False] * 4 + [True, True, True, False]
    found = by_stain(answers(right, [0.5] * 4 + [0.9] * 4 + [0.1] * 4), slides)
    assert tuple(found) == STAIN_GROUPS
    assert [part.figure for part in found.values()] == [0.75, 1.0, 0.0]
    assert by_stain(answers([True] * 4), np.array(["a", "a", "b", "b"])) == {}


def test_the_worst_tile_is_the_surest_mistake() -> None:
    said = np.array([[3.0, 0.0], [0.0, 3.0], [0.0, 6.0], [0.1, 0.0]], np.float32)
    found = Answers("classification", np.arange(4), said, np.zeros(4, np.int64), np.zeros((4, 2), np.float32), 0)
    assert np.argsort(found.per_tile()).tolist() == [2, 1, 3, 0]
    pixels = np.array([[[9, 0], [0, 0]], [[5, 1], [1, 2]], [[5, 0], [4, 0]], [[5, 0], [0, 4]]])
    marked = Answers("segmentation", np.arange(4), pixels, np.zeros(4, np.int64), np.zeros((4, 2), np.float32), 0)
    assert marked.per_tile() == pytest.approx([1.0, 2 * 2 / (2 * 2 + 2), 0.0, 1.0])
