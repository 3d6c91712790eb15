"""Every gate passes at its limit, fails just past it, and fails on nan."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histill.config.scoring import Gates
from histill.registry.gates import ROUNDING, Figures, GateResult, gate_table, judge

pytestmark = pytest.mark.unit

CANDIDATE = Figures(dice=0.7, miou=0.6, gmacs=4.0, parameters=5_000_000, tiles=40, tiles_digest="ab" * 32)
UNIT = st.floats(0, 1, allow_nan=False)


def gate(name: str, gates: Gates, candidate: Figures, champion: Figures | None = None) -> GateResult:
    return {result.name: result for result in judge(candidate, champion, gates)}[name]


def test_gates_that_are_not_set_are_not_listed() -> None:
    assert [result.name for result in judge(CANDIDATE, None, Gates())] == ["min_dice", "max_regression"]


@pytest.mark.parametrize(
    ("name", "gates", "candidate", "shortfall"),
    [
        ("min_dice", Gates(min_dice=0.7), CANDIDATE, 0.0),
        ("min_dice", Gates(min_dice=0.75), CANDIDATE, 0.05),
        ("max_gmacs", Gates(max_gmacs=4.0), CANDIDATE, 0.0),
        ("max_gmacs", Gates(max_gmacs=3.5), CANDIDATE, 0.5),
        ("max_parameters", Gates(max_parameters=5_000_000), CANDIDATE, 0.0),
        ("max_parameters", Gates(max_parameters=4_999_999), CANDIDATE, 1.0),
    ],
)
def test_a_limit_is_met_by_its_equal(name: str, gates: Gates, candidate: Figures, shortfall: float) -> None:
    result = gate(name, gates, candidate)
    assert result.passed == (shortfall == 0.0)
    assert result.shortfall == pytest.approx(shortfall)


@pytest.mark.parametrize("name", ["min_dice", "max_regression", "max_gmacs"])
def test_nan_fails(name: str) -> None:
    nothing_known = replace(CANDIDATE, dice=math.nan, gmacs=math.nan)
    result = gate(name, Gates(max_gmacs=10.0), nothing_known, champion=CANDIDATE)
    assert not result.passed
    assert math.isnan(result.shortfall)


def test_a_champion_whose_dice_is_nan_is_no_yardstick() -> None:
    assert not gate("max_regression", Gates(), CANDIDATE, replace(CANDIDATE, dice=math.nan)).passed


def test_the_first_model_has_nothing_to_regress_from() -> None:
    result = gate("max_regression", Gates(), replace(CANDIDATE, dice=0.01))
    assert result.passed
    assert result.note == "no champion yet"


def test_a_difference_equal_to_the_margin_passes_whatever_binary_makes_of_it() -> None:
    assert 0.8 - 0.1 > 0.7
    result = gate("max_regression", Gates(max_regression=0.1), CANDIDATE, replace(CANDIDATE, dice=0.8))
    assert result.passed


@pytest.mark.parametrize("other", [{"tiles": 39}, {"tiles_digest": "cd" * 32}])
def test_scores_on_other_tiles_are_not_compared(other: dict[str, object]) -> None:
    champion = replace(CANDIDATE, dice=0.1, **other)  # type: ignore[arg-type]
    result = gate("max_regression", Gates(max_regression=1.0), CANDIDATE, champion)
    assert not result.passed
    assert "39 tiles" in result.note or "cdcdcdcdcdcd" in result.note


@given(dice=UNIT, best=UNIT, margin=UNIT)
def test_regression_is_the_difference_of_the_dice(dice: float, best: float, margin: float) -> None:
    candidate, champion = replace(CANDIDATE, dice=dice), replace(CANDIDATE, dice=best)
    result = gate("max_regression", Gates(max_regression=margin), candidate, champion)
    missing = best - margin - dice
    assert result.passed == (missing <= ROUNDING)
    assert result.shortfall == (0.0 if result.passed else missing)


@given(dice=UNIT, better=UNIT, best=UNIT, floor=UNIT)
def test_a_better_dice_never_fails_where_a_worse_one_passes(
    dice: float, better: float, best: float, floor: float
) -> None:
    low, high = sorted((dice, better))
    champion, gates = replace(CANDIDATE, dice=best), Gates(min_dice=floor)
    passed = [
        all(result.passed for result in judge(replace(CANDIDATE, dice=value), champion, gates)) for value in (low, high)
    ]
    assert passed != [True, False]


def test_the_table_says_which_gate_failed_by_how_much() -> None:
    gates = Gates(min_dice=0.75, max_parameters=6_000_000)
    champion = replace(CANDIDATE, tiles=39)
    lines = gate_table(judge(CANDIDATE, champion, gates)).splitlines()[2:]
    assert lines[0].split() == ["min_dice", "at", "least", "0.7500", "0.7000", "FAILED", "by", "0.05"]
    assert lines[1].startswith("max_regression")
    assert "FAILED" in lines[1]
    assert "39 tiles" in lines[1]
    assert lines[2].split() == ["max_parameters", "at", "most", "6,000,000", "5,000,000", "passed"]
