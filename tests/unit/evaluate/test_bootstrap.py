"""The bootstrap over cases, and parts of a split."""

import math

import numpy as np
import pytest
from scipy import stats

from histill.evaluate.bootstrap import bootstrap_metrics, paired_difference, percentile_interval
from histill.evaluate.predictions import Predictions
from histill.evaluate.subgroups import STAIN_GROUPS, score_slides, score_stain_groups
from histill.outputs import OutputSpec

pytestmark = pytest.mark.unit

CLASSIFIED, SEGMENTED = (OutputSpec(kind, ("a", "b")) for kind in ("classification", "segmentation"))


def answers(right: list[bool], stains: list[float] | None = None) -> Predictions:
    """A classifier of two classes that is sure, and right where it says so; tiles of both classes take turns."""
    truth = np.arange(len(right)) % 2
    decided = np.where(right, truth, 1 - truth)
    hematoxylin = np.array(stains if stains is not None else [0.5] * len(right))
    return Predictions(
        spec=CLASSIFIED,
        rows=np.arange(len(right)),
        said=np.eye(2, dtype=np.float32)[decided] * 9,
        truth=truth,
        stains=np.stack([hematoxylin, 1 - hematoxylin], 1).astype(np.float32),
        corrupt=0,
    )


def test_draws_are_of_whole_cases() -> None:
    """One case all right and one all wrong: a draw of two cases holds both, twice the one or twice the other."""
    cases = np.array(["a"] * 6 + ["b"] * 6)
    found = bootstrap_metrics(answers([True] * 6 + [False] * 6), cases, 2000, seed=0)["accuracy"]
    values, counts = np.unique(found, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(counts / 2000, [0.25, 0.5, 0.25], atol=0.04)


def test_the_interval_is_as_wide_as_cases_differ() -> None:
    """400 cases of one tile, 70 % of them right: the standard error is sqrt(0.7 * 0.3 / 400)."""
    random = np.random.default_rng(0)
    right = [bool(each) for each in random.random(400) < 0.7]
    low, high = percentile_interval(bootstrap_metrics(answers(right), np.arange(400), 2000, seed=1)["accuracy"], 400)
    share = float(np.mean(right))
    error = math.sqrt(share * (1 - share) / 400)
    assert (low, high) == (pytest.approx(share - 1.96 * error, abs=0.01), pytest.approx(share + 1.96 * error, abs=0.01))


def test_the_interval_of_few_cases_is_as_wide_as_students() -> None:
    """Of seven even cases; plain percentiles have three quarters of its width."""
    share = np.array([2, 4, 5, 6, 7, 8, 10]) / 10
    right = [tile < 10 * each for each in share for tile in range(10)]
    found = bootstrap_metrics(answers(right), np.repeat(np.arange(7), 10), 2000, seed=2)["accuracy"]
    low, high = percentile_interval(found, 7)
    below, above = stats.t.interval(0.95, 6, share.mean(), share.std(ddof=1) / math.sqrt(7))
    assert high - low == pytest.approx(above - below, rel=0.1)
    assert np.subtract(*np.percentile(found, [97.5, 2.5])) < 0.8 * (above - below)


def test_the_same_seed_draws_the_same_cases_for_every_model() -> None:
    cases = np.repeat(np.arange(10), 4)
    one, same, other = (
        bootstrap_metrics(answers([bool(tile % 3) for tile in range(40)]), cases, 50, seed=seed)["accuracy"]
        for seed in (0, 0, 1)
    )
    assert (one == same).all()
    assert (one != other).any()


def test_an_unknown_figure_has_no_interval() -> None:
    assert all(map(math.isnan, percentile_interval(np.array([math.nan, math.nan]), 9)))
    assert percentile_interval(np.array([math.nan, 1.0]), 9) == (1.0, 1.0)


@pytest.mark.parametrize("cases", [1, 2, 5])
def test_fewer_than_six_cases_have_no_interval(cases: int) -> None:
    one, other = answers([True] * 20), answers([True, False] * 10)
    difference, spread = paired_difference(one, other, np.arange(20) % cases, "accuracy", 50)
    assert difference == 0.5
    assert all(map(math.isnan, spread))


def contributions(values: list[int]) -> tuple[Predictions, Predictions, np.ndarray]:
    """Two classifiers that differ by so many right tiles of ten in each case: all of the first one's are right."""
    one = answers([True] * 10 * len(values))
    other = answers([tile >= value for value in values for tile in range(10)])
    return one, other, np.repeat(np.arange(len(values)), 10)


def test_the_interval_of_six_cases_reaches_from_the_least_to_the_greatest() -> None:
    """Of 63 subsets one may lie on the wrong side with a chance of 1/64: the extremes are means of single cases."""
    difference, spread = paired_difference(*contributions([1, 2, 3, 4, 5, 9]), "accuracy", 100)
    assert difference == pytest.approx(0.4)
    assert spread == (pytest.approx(0.1), pytest.approx(0.9))


def test_the_interval_is_the_sign_flip_test_inverted() -> None:
    """Eight cases: centers inside are those which the exact test of all 256 flips does not reject at 5 %."""
    values = [0, 2, 2, 3, 5, 6, 7, 9]
    low, high = paired_difference(*contributions(values), "accuracy", 1000)[1]
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)

    def p_value(center: float) -> float:
        shifted = np.array(values) / 10 - center
        return float((shifted @ signs >= shifted.sum() - 1e-9).mean())

    assert p_value(low - 1e-6) <= 0.025 < p_value(low + 1e-6)
    assert -1 <= low < 0.425 < high <= 1


def test_cases_that_make_no_difference_are_no_evidence() -> None:
    assert paired_difference(*contributions([0, 0, 0, 0, 0, 0, 0, 5]), "accuracy", 300)[1][0] == 0.0
    assert paired_difference(*contributions([0] * 12), "balanced_accuracy", 300)[1] == (0.0, 0.0)


def test_one_large_case_is_one_case() -> None:
    """Nine small cases against it weigh nothing beside it, so that its own sign must not decide."""
    sizes = np.array([400, *[4] * 9])
    cases = np.repeat(np.arange(10), sizes)
    one = answers([True] * len(cases))
    other = answers([not (case == 0 and tile % 4 == 0) for tile, case in enumerate(cases)])
    difference, (low, _) = paired_difference(one, other, cases, "accuracy", 300)
    assert difference > 0.2
    assert low <= 0


def equal_models(random: np.random.Generator, cases: int) -> tuple[Predictions, Predictions, np.ndarray]:
    """Two models of the same skill, each with a skill of its own in each case of 4 to 40 tiles."""
    case = np.repeat(np.arange(cases), random.integers(2, 20, cases) * 2)
    found = [
        answers((random.random(len(case)) < random.normal(0.85, 0.1, cases).clip(0, 1)[case]).tolist())
        for _ in range(2)
    ]
    return found[0], found[1], case


@pytest.mark.parametrize("cases", [6, 10])
def test_an_equal_model_is_surely_better_no_more_often_than_it_may_be(cases: int) -> None:
    """At most 2.5 % of the draws: of 300 more than 15 would be seen once in a thousand times."""
    random = np.random.default_rng(cases)
    lows = [paired_difference(*equal_models(random, cases), "balanced_accuracy", 200)[1][0] for _ in range(300)]
    assert sum(low > 0 for low in lows) <= 15


def test_slides_come_with_the_worst_first() -> None:
    slides = np.array(["good"] * 4 + ["bad"] * 4 + ["middling"] * 4)
    found = score_slides(answers([True] * 4 + [False] * 4 + [True, True, True, False]), slides)
    assert list(found) == ["bad", "middling", "good"]
    assert [part.tiles for part in found.values()] == [4, 4, 4]
    assert [part.figure for part in found.values()] == [0.0, 0.75, 1.0]


def test_stain_groups_are_of_slides_by_their_hematoxylin() -> None:
    slides = np.repeat(["c", "a", "b"], 4)
    right = [True] * 4 + [False] * 4 + [True, True, True, False]
    found = score_stain_groups(answers(right, [0.5] * 4 + [0.9] * 4 + [0.1] * 4), slides)
    assert tuple(found) == STAIN_GROUPS
    assert [part.figure for part in found.values()] == [0.75, 1.0, 0.0]
    assert score_stain_groups(answers([True] * 4), np.array(["a", "a", "b", "b"])) == {}


def test_the_worst_tile_is_the_surest_mistake() -> None:
    said = np.array([[3.0, 0.0], [0.0, 3.0], [0.0, 6.0], [0.1, 0.0]], np.float32)
    nothing, stains = np.zeros(4, np.int64), np.zeros((4, 2), np.float32)
    found = Predictions(CLASSIFIED, np.arange(4), said, nothing, stains, 0)
    assert np.argsort(found.per_tile()).tolist() == [2, 1, 3, 0]
    pixels = np.array([[[9, 0], [0, 0]], [[5, 1], [1, 2]], [[5, 0], [4, 0]], [[5, 0], [0, 4]]])
    marked = Predictions(SEGMENTED, np.arange(4), pixels, nothing, stains, 0)
    assert marked.per_tile() == pytest.approx([1.0, 2 * 2 / (2 * 2 + 2), 0.0, 1.0])
