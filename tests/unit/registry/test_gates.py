"""Every gate passes at its limit, fails just past it, and fails on nan; noise promotes nobody."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histill.artifacts.model_folder import TaughtBy
from histill.config.promote_model import Gates, LicenseGate
from histill.errors import InputError
from histill.evaluate.bootstrap import paired_difference
from histill.evaluate.groups import Group
from histill.evaluate.predictions import Predictions
from histill.evaluate.score import Score
from histill.evaluate.subgroups import Subgroup
from histill.licenses import License
from histill.outputs import OutputSpec
from histill.registry import gates as gates_module
from histill.registry.gates import ROUNDING, ChampionComparison, GateResult, Provenance, evaluate_gates, format_gates

pytestmark = pytest.mark.unit

SCORE = Score(
    model_digest="ef" * 32, kind="segmentation", split="test", tiles=40, corrupt=0, cases=4, slides=4,
    reference="masks", tiles_digest="ab" * 32, figures={"dice": 0.7, "miou": 0.6}, intervals={}, classes={},
    confusion=(), by_stain={}, by_slide={}, parameters=5_000_000, gmacs=4.0, gmacs_with_attention=4.0, size_px=64,
)  # fmt: skip
RIVALRY = ChampionComparison(champion="3", figure=0.6, difference=0.1, low=0.05, high=0.15, gmacs=4.0)
SOUND = Provenance(missing=(), seen_cases=0, difference=1e-6)
CLASSIFIED = OutputSpec("classification", tuple("abcd"))
GATES = ["not worse", "better or cheaper", "exported formats", "unseen cases", "digests"]


def judged(
    gates: Gates, score: Score = SCORE, rivalry: ChampionComparison | None = RIVALRY, provenance: Provenance = SOUND
) -> dict[str, GateResult]:
    return {result.name: result for result in evaluate_gates(score, rivalry, provenance, gates)}


def test_a_sound_and_better_candidate_passes() -> None:
    found = judged(Gates())
    assert list(found) == GATES
    assert all(result.passed for result in found.values())


@pytest.mark.parametrize(
    ("name", "gates", "shortfall"),
    [
        ("dice", Gates(floors={"dice": 0.7}), 0.0),
        ("dice", Gates(floors={"dice": 0.75}), 0.05),
        ("miou", Gates(ceilings={"miou": 0.5}), 0.1),
        ("gmacs", Gates(ceilings={"gmacs": 4.0}), 0.0),
        ("gmacs", Gates(ceilings={"gmacs": 3.5}), 0.5),
        ("parameters", Gates(ceilings={"parameters": 5_000_000}), 0.0),
        ("parameters", Gates(ceilings={"parameters": 4_999_999}), 1.0),
    ],
)
def test_a_limit_is_met_by_its_equal(name: str, gates: Gates, shortfall: float) -> None:
    result = judged(gates)[name]
    assert result.passed == (shortfall == 0.0)
    assert result.shortfall == pytest.approx(shortfall)


@pytest.mark.parametrize(
    ("margin", "high", "passed", "shortfall"),
    [(0.0, -0.01, False, 0.01), (0.02, -0.01, True, 0.0), (0.02, -0.05, False, 0.03), (0.0, 0.0, True, 0.0)],
)
def test_a_group_that_is_surely_worse_is_refused(margin: float, high: float, passed: bool, shortfall: float) -> None:
    groups = {
        "B": Group(tiles=10, cases=7, figure=0.5, difference=-0.1, low=-0.2, high=high),
        "C": Group(tiles=10, cases=2, figure=0.6, difference=math.nan, low=math.nan, high=math.nan),
        "A": Group(tiles=20, cases=9, figure=0.7, difference=0.1, low=-0.1, high=0.2),
    }
    score = replace(SCORE, by_column={"scanner": groups})
    assert "by scanner" not in judged(Gates(), score)
    result = judged(Gates(max_group_loss=margin), score)["by scanner"]
    assert (result.passed, result.value) == (passed, high)
    assert result.shortfall == pytest.approx(shortfall)
    assert result.note == "B: 0.5000 on 7 cases; too few cases to judge C"
    assert result.warning


@pytest.mark.parametrize("gates", [Gates(floors={"auroc": 0.5}), Gates(ceilings={"speed": 1.0})])
def test_a_figure_that_the_model_does_not_have_is_refused_by_name(gates: Gates) -> None:
    with pytest.raises(InputError, match=r"the figure '(auroc|speed)'; the model has dice, miou, gmacs, parameters"):
        evaluate_gates(SCORE, None, SOUND, gates)


@pytest.mark.parametrize("name", ["dice", "not worse", "better or cheaper", "exported formats"])
def test_nan_fails(name: str) -> None:
    score = replace(SCORE, figures={"dice": math.nan, "miou": math.nan})
    rivalry = replace(RIVALRY, difference=math.nan, low=math.nan, high=math.nan)
    result = judged(Gates(floors={"dice": 0.1}), score, rivalry, replace(SOUND, difference=math.nan))[name]
    assert not result.passed
    assert math.isnan(result.shortfall)
    assert ("several cases" in result.note) == (name == "not worse")


def test_the_first_model_has_nobody_to_be_worse_than() -> None:
    found = judged(Gates(), rivalry=None)
    assert "better or cheaper" not in found
    assert (found["not worse"].passed, found["not worse"].note) == (True, "no champion yet")


@given(low=st.floats(-1, 1), margin=st.floats(0, 1))
def test_the_lower_end_of_the_difference_decides(low: float, margin: float) -> None:
    found = judged(Gates(max_regression=margin), rivalry=replace(RIVALRY, low=low))
    assert found["not worse"].passed == (-margin - low <= ROUNDING)
    assert found["better or cheaper"].passed == (low > 0)


@pytest.mark.parametrize(
    ("gmacs", "cheaper", "passed"), [(3.6, 0.9, True), (3.7, 0.9, False), (4.0, 1.0, True), (4.0, None, True)]
)
def test_an_equal_model_must_be_cheaper(gmacs: float, cheaper: float | None, passed: bool) -> None:
    found = judged(
        Gates(max_cost_ratio=cheaper), replace(SCORE, gmacs=gmacs), replace(RIVALRY, difference=0.0, low=-0.01)
    )
    assert all(result.passed for result in found.values()) == passed


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("exported formats", {"difference": 0.02}),
        ("unseen cases", {"seen_cases": 1}),
        ("digests", {"missing": ("train_cases",)}),
    ],
)
def test_where_it_comes_from_matters(name: str, changes: dict[str, Any]) -> None:
    found = judged(Gates(), provenance=replace(SOUND, **changes))
    assert [result.name for result in found.values() if not result.passed] == [name]


def test_a_slide_whose_regions_are_declared_to_be_other_patients_is_said() -> None:
    found = judged(Gates(), provenance=replace(SOUND, divided=("tma-1", "tma-2")))["unseen cases"]
    assert (found.passed, found.warning) == (True, True)
    assert found.note.startswith("other regions of tma-1 and 1 more slide were learned from; slides.split_within_slide")


@pytest.mark.parametrize(("cases", "passed"), [(5, False), (6, True), (None, True)])
def test_a_champion_is_replaced_on_enough_cases_only(cases: int | None, passed: bool) -> None:
    found = judged(Gates(), rivalry=replace(RIVALRY, cases=cases))
    assert all(result.passed for result in found.values()) == passed
    assert ("enough cases" in found) == (cases is not None)
    assert judged(Gates(min_cases=10), rivalry=replace(RIVALRY, cases=9))["enough cases"].shortfall == 1


def test_who_compares_nothing_needs_no_interval() -> None:
    few = replace(RIVALRY, difference=-0.9, low=math.nan, high=math.nan, cases=2)
    found = judged(Gates(max_regression=1.0, max_cost_ratio=None), rivalry=few)
    assert found["not worse"].passed
    assert "enough cases" not in found
    assert not judged(Gates(max_regression=0.99), rivalry=few)["not worse"].passed


@pytest.mark.parametrize(("constant", "passed"), [(0.69, True), (0.7, False), (0.82, False), (None, True)])
def test_a_model_must_beat_what_one_answer_for_all_tiles_reaches(constant: float | None, passed: bool) -> None:
    provenance = replace(SOUND, constant=constant)
    found = judged(Gates(), provenance=provenance)
    assert all(result.passed for result in found.values()) == passed
    assert all(result.passed for result in judged(Gates(beat_constant=False), provenance=provenance).values())


def test_the_best_earlier_champion_is_compared_with_by_the_same_margin() -> None:
    best = replace(RIVALRY, champion="1", figure=0.75, difference=-0.05, low=-0.08, high=0.01)
    results = {each.name: each for each in evaluate_gates(SCORE, RIVALRY, SOUND, Gates(max_regression=0.05), best)}
    assert [name for name, each in results.items() if not each.passed] == ["not worse than the best"]
    assert "against 0.7500 of version 1" in results["not worse than the best"].note


def test_tries_on_the_same_tiles_are_a_warning() -> None:
    """Of seven models that are no better one passes 2.5 % by luck with a chance of 1 - 0.975^7 = 16.2 %."""
    results = evaluate_gates(SCORE, replace(RIVALRY, tries=7), SOUND, Gates())
    assert "WARNING" in format_gates(results)
    assert "a chance of up to 16%" in judged(Gates(), rivalry=replace(RIVALRY, tries=7))["tries"].note
    assert "WARNING" not in format_gates(evaluate_gates(SCORE, RIVALRY, SOUND, Gates()))


@pytest.mark.parametrize("refuse", [False, True])
def test_an_unknown_lineage_is_said_or_refused(refuse: bool) -> None:
    provenance = replace(SOUND, unknown=("ONNX teacher t.onnx",))
    result = judged(Gates(refuse_unknown=refuse), provenance=provenance)["known lineage"]
    assert (result.passed, result.warning) == (not refuse, not refuse)
    assert result.note == "not known: ONNX teacher t.onnx"


FREE = TaughtBy(name="onnx teacher free.onnx", license=License.model_validate("Apache-2.0"))
NOT_FREE = TaughtBy(
    name="encoder teacher s3://b/uni (uni)",
    license=License(name="CC-BY-NC-ND-4.0", commercial=False, source="https://huggingface.co/MahmoodLab/UNI"),
)
UNSURE = TaughtBy(name="encoder teacher g", license=License(name="terms of G", source="https://example.org/g"))
UNKNOWN = TaughtBy(name="onnx teacher t.onnx")
FORBIDS = (
    "CC-BY-NC-ND-4.0 of encoder teacher s3://b/uni (uni) forbids commercial use of models that it taught "
    "(https://huggingface.co/MahmoodLab/UNI)"
)
UNSAID = "terms of G of encoder teacher g is not known to allow commercial use of models that it taught"
UNRECORDED = "onnx teacher t.onnx has no license on record, which gates.license.stated can give"


def licensed(*teachers: TaughtBy, **rules: Any) -> dict[str, GateResult]:
    """The gates of licenses, by name."""
    provenance, gates = replace(SOUND, taught_by=teachers), Gates(license=LicenseGate(**rules))
    return {name: each for name, each in judged(gates, provenance=provenance).items() if name not in GATES}


@pytest.mark.parametrize(
    ("teachers", "notes"),
    [
        ((), []),
        ((FREE,), []),
        ((FREE, NOT_FREE), [FORBIDS]),
        ((UNSURE,), [UNSAID]),
        ((UNKNOWN,), [UNRECORDED]),
        ((NOT_FREE, FREE, UNKNOWN), [FORBIDS, UNRECORDED]),
    ],
)
def test_commercial_use_must_be_allowed_by_all_that_taught_it(teachers: tuple[TaughtBy, ...], notes: list[str]) -> None:
    result = licensed(*teachers, commercial=True)["commercial use"]
    assert (result.passed, result.value) == (not notes, len(notes))
    assert all(note in result.note for note in notes)
    assert result.note.count("; ") == max(len(notes) - 1, 0)


def test_without_a_rule_restrictions_are_a_warning() -> None:
    assert licensed(FREE) == {}
    result = licensed(FREE, NOT_FREE)["licenses"]
    assert (result.passed, result.warning, result.note) == (True, True, FORBIDS)


@pytest.mark.parametrize(
    ("allow", "others"),
    [
        (("apache-2.0",), [NOT_FREE, UNSURE, UNKNOWN]),
        (("Apache 2.0", "CC-BY-NC-ND-4.0", "Terms of G"), [UNKNOWN]),
        (("MIT",), [FREE, NOT_FREE, UNSURE, UNKNOWN]),
    ],
)
def test_only_licenses_that_are_named_are_allowed(allow: tuple[str, ...], others: list[TaughtBy]) -> None:
    found = licensed(FREE, NOT_FREE, UNSURE, UNKNOWN, allow=allow)
    assert list(found) == ["licenses"]
    assert (found["licenses"].passed, found["licenses"].value) == (False, len(others))
    assert all(each.name in found["licenses"].note for each in others)
    assert FREE.name not in found["licenses"].note or FREE in others
    assert licensed(FREE, allow=("APACHE-2.0",))["licenses"].passed


def test_commercial_use_is_required_of_licenses_that_are_named_as_well() -> None:
    found = licensed(NOT_FREE, commercial=True, allow=("CC-BY-NC-ND-4.0",))
    assert {name: each.passed for name, each in found.items()} == {"commercial use": False, "licenses": True}


def test_a_champion_that_was_deleted_is_said() -> None:
    (result, *_) = [
        each for each in evaluate_gates(SCORE, None, SOUND, Gates(), None, "all were deleted") if each.warning
    ]
    assert (result.name, result.passed, result.note) == ("not worse", True, "all were deleted")
    stand_in = judged(Gates(), rivalry=replace(RIVALRY, note="its alias was deleted"))["not worse"]
    assert stand_in.warning
    assert stand_in.note.endswith("; its alias was deleted")


def test_the_table_says_which_gate_failed_by_how_much() -> None:
    gates = Gates(floors={"dice": 0.75}, ceilings={"parameters": 6_000_000})
    lines = format_gates(evaluate_gates(SCORE, replace(RIVALRY, low=-0.03), SOUND, gates)).splitlines()[2:]
    assert lines[0].split() == ["dice", "at", "least", "0.7500", "0.7000", "FAILED", "by", "0.05"]
    assert lines[1].split() == ["parameters", "at", "most", "6,000,000", "5,000,000", "passed"]
    assert "FAILED by 0.01" in lines[2]
    equal = evaluate_gates(SCORE, None, replace(SOUND, constant=0.7), Gates())
    assert [line for line in format_gates(equal).splitlines() if "FAILED, equal" in line]
    assert "dice +0.1000 (-0.0300 to +0.1500) against 0.6000 of version 3" in lines[2]


def rivals(seed: int, skill: float, other: float) -> tuple[Predictions, Predictions, np.ndarray]:
    """Two classifiers of four classes that are right with these chances, on 60 cases of 10 tiles, some harder."""
    random = np.random.default_rng(seed)
    cases = np.repeat(np.arange(60), 10)
    truth = random.integers(4, size=len(cases))
    hard = random.normal(0, 0.1, 60)[cases]
    answers = []
    for chance in (skill, other):
        right = random.random(len(cases)) < np.clip(chance + hard, 0, 1)
        decided = np.where(right, truth, (truth + random.integers(1, 4, len(cases))) % 4)
        said = np.eye(4, dtype=np.float32)[decided] * 3
        stains = np.zeros((len(cases), 2), np.float32)
        answers.append(Predictions(CLASSIFIED, np.arange(len(cases)), said, truth, stains, 0))
    return answers[0], answers[1], cases


def promoted(seed: int, skill: float, champion: float) -> bool:
    one, other, cases = rivals(seed, skill, champion)
    difference, (low, high) = paired_difference(one, other, cases, "balanced_accuracy", 400)
    rivalry = replace(RIVALRY, figure=champion, difference=difference, low=low, high=high)
    return all(result.passed for result in evaluate_gates(SCORE, rivalry, SOUND, Gates(max_regression=0.02)))


def test_a_candidate_that_is_worse_by_more_than_the_margin_is_refused_every_time() -> None:
    assert [promoted(seed, 0.76, 0.8) for seed in range(20)] == [False] * 20


def test_an_equal_candidate_is_not_promoted_on_noise() -> None:
    assert sum(promoted(seed, 0.8, 0.8) for seed in range(20)) <= 1


def test_a_better_candidate_is_promoted() -> None:
    assert sum(promoted(seed, 0.9, 0.8) for seed in range(20)) >= 19


@pytest.mark.parametrize(("worst", "passed"), [(0.36, True), (0.34, False), (math.nan, True)])
def test_the_gate_of_the_documentation_joins_the_table(
    worst: float, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/extend.md's example in its section "A gate", as it stands: one function and one entry in one file."""
    text = (Path(__file__).parents[3] / "docs" / "extend.md").read_text()
    source = text.split("## A gate\n")[1].split("```python\n")[1].split("```")[0]
    names = dict(vars(gates_module))
    exec(source, names)
    monkeypatch.setattr(gates_module, "GATES", (*gates_module.GATES, names["check_worst_slide"]))
    assert judged(Gates())["digests"].passed
    assert "worst slide" not in judged(Gates())
    slides = {"a": Subgroup(20, 0.9), "b": Subgroup(20, worst)}
    assert judged(Gates(), replace(SCORE, by_slide=slides))["worst slide"].passed == passed
