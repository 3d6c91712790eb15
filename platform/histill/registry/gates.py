"""The gates that a candidate must pass to become champion, as pure functions of figures.

To add a gate, write a function and list it in GATES, both in this file.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from tabulate import tabulate

from histill.artifacts.model_folder import TaughtBy
from histill.cluster.progress import count_of
from histill.config.promote_model import Gates
from histill.errors import InputError
from histill.evaluate.bootstrap import LEAST_CASES
from histill.evaluate.groups import find_surely_worse
from histill.evaluate.score import Score
from histill.licenses import plain_name

ROUNDING = 1e-9  # a Dice that equals its limit must pass: 0.8 - 0.1 is more than 0.7 in binary
COSTS = ("gmacs", "parameters")
ONE_SIDED = 0.025  # the level of "surely better"
TableStyle = Literal["simple", "github"]  # of tabulate: text, and Markdown


@dataclass(frozen=True)
class ChampionComparison:
    """A candidate compared with the champion on the same tiles: its main figure minus the champion's.

    `low` and `high` are the ends of the difference's 95 % interval over cases; NaN if there is none.
    """

    champion: str  # its version
    figure: float
    difference: float
    low: float
    high: float
    gmacs: float
    cases: int | None = None  # held-out cases; None: not counted
    tries: int = 1  # candidates judged on these held-out tiles, this one included
    note: str = ""  # further remarks on the champion


@dataclass(frozen=True)
class Provenance:
    """A candidate's lineage, the accuracy of its exports, and the constant baseline."""

    missing: tuple[str, ...]  # digests missing from its card
    seen_cases: int  # held-out cases that it, its encoder or its teacher was trained on
    difference: float  # largest difference between logits of its exported formats and its own
    seen_tiles: int = 0  # held-out tiles that are byte-identical to a training tile
    divided: tuple[str, ...] = ()  # held-out slides with other regions, of other cases, that it has learned from
    unknown: tuple[str, ...] = ()  # parts of the lineage that could not be compared with the held-out tiles
    constant: float | None = None  # main figure of the best constant answer; None: not known
    taught_by: tuple[TaughtBy, ...] = ()  # licensed teachers and weights, with their licenses


@dataclass(frozen=True)
class GateResult:
    """One gate's decision.

    `name` is the gate, `required` its condition in words, `value` the measured value. `shortfall` is how far the value
    misses the condition: 0 if the gate is passed, nan if that cannot be expressed as a number.
    """

    name: str
    passed: bool
    required: str
    value: float
    shortfall: float
    note: str = ""
    warning: bool = False  # passed with reservations, given in the note


@dataclass(frozen=True)
class Evidence:
    """The inputs of a gate.

    `best` compares the candidate with the best earlier champion, if that is not the current one; `missing` says why a
    model that had a champion has none.
    """

    score: Score
    comparison: ChampionComparison | None
    provenance: Provenance
    best: ChampionComparison | None
    missing: str

    @property
    def figures(self) -> dict[str, float]:
        """Figures and costs by name."""
        return self.score.figures | {name: float(getattr(self.score, name)) for name in COSTS}


Gate = Callable[[Evidence, Gates], Iterable[GateResult]]  # no result: the gate does not apply


def evaluate_gates(
    score: Score,
    comparison: ChampionComparison | None,
    provenance: Provenance,
    gates: Gates,
    best: ChampionComparison | None = None,
    missing: str = "",
) -> tuple[GateResult, ...]:
    """Evaluate every gate for a candidate: nan fails, a figure equal to its limit passes.

    Raises InputError for a floor or ceiling on a figure that the model does not have.
    """
    evidence = Evidence(score, comparison, provenance, best, missing)
    for name in (*gates.floors, *gates.ceilings):
        if name not in evidence.figures:
            known = ", ".join(evidence.figures)
            raise InputError(
                f"gates name the figure {name!r}; the model has {known}: name one of these.", code="config-wrong-value"
            )
    return tuple(result for gate in GATES for result in gate(evidence, gates))


def format_gates(results: tuple[GateResult, ...], style: TableStyle = "simple") -> str:
    """Format the decisions as text or as Markdown, one row per gate: condition, value, and by how much it failed."""
    rows = [(each.name, each.required, _number(each.value), _result_of(each), each.note) for each in results]
    headers = ("gate", "required", "candidate", "result", "note")
    return tabulate(rows, headers=headers, tablefmt=style, disable_numparse=True)


def check_floors(evidence: Evidence, gates: Gates) -> Iterable[GateResult]:
    """Require figures and costs to reach their floors."""
    return [_at_least(name, evidence.figures[name], limit) for name, limit in gates.floors.items()]


def check_ceilings(evidence: Evidence, gates: Gates) -> Iterable[GateResult]:
    """Require figures and costs not to exceed their ceilings."""
    return [_at_most(name, evidence.figures[name], limit) for name, limit in gates.ceilings.items()]


def check_constant(evidence: Evidence, gates: Gates) -> Iterable[GateResult]:
    """Require the main figure to beat the best constant answer."""
    constant, value = evidence.provenance.constant, evidence.score.figures[evidence.score.main]
    if constant is None or not gates.beat_constant:
        return
    passed = value > constant + ROUNDING
    note = "figure of the best constant prediction"
    shortfall = 0.0 if passed else constant - value
    yield GateResult("beats a constant", passed, f"more than {_number(constant)}", value, shortfall, note)


def check_champion(evidence: Evidence, gates: Gates) -> Iterable[GateResult]:
    """Require, on enough cases, no regression beyond the margin, and a significant gain or a lower cost."""
    score, rivalry = evidence.score, evidence.comparison
    if rivalry is None:
        note = evidence.missing or "no champion yet"
        warning = bool(evidence.missing)
        yield GateResult("not worse", True, "-", score.figures[score.main], 0.0, note, warning=warning)
        return
    if rivalry.cases is not None and gates.max_regression < 1:
        yield _at_least("enough cases", rivalry.cases, gates.min_cases, "held-out cases")
    yield _not_worse("not worse", rivalry, score, gates)
    if gates.max_cost_ratio is not None:
        share = score.gmacs / rivalry.gmacs if rivalry.gmacs else math.nan
        better, cheaper = rivalry.low > 0, share <= gates.max_cost_ratio + ROUNDING
        required = f"more than 0, or at most {gates.max_cost_ratio:.0%} of its cost"
        shortfall = 0.0 if better or cheaper else -rivalry.low
        note = f"{share:.0%} of the champion's GMACs"
        yield GateResult("better or cheaper", better or cheaper, required, rivalry.low, shortfall, note)
    if rivalry.tries > 1:
        yield _tries(rivalry.tries)


def check_best_earlier(evidence: Evidence, gates: Gates) -> Iterable[GateResult]:
    """Require no regression from the best earlier champion: small losses must not accumulate."""
    if evidence.best is not None:
        yield _not_worse("not worse than the best", evidence.best, evidence.score, gates)


def check_groups(evidence: Evidence, gates: Gates) -> Iterable[GateResult]:
    """Require that no group, such as the tiles of one scanner, is surely worse than the others by more than allowed."""
    if gates.max_group_loss is None:
        return
    for column, groups in evidence.score.by_column.items():
        worse = find_surely_worse(groups, gates.max_group_loss)
        small = [name for name, each in groups.items() if math.isnan(each.high)]
        name, worst = next(iter((worse or groups).items()))
        notes = [f"{name}: {worst.figure:.4f} on {count_of(worst.cases, 'case')}"]
        notes += [f"too few cases to judge {', '.join(small)}"] if small else []
        value = min((each.high for each in groups.values() if not math.isnan(each.high)), default=math.nan)
        required = f"no group surely below the others by {_number(gates.max_group_loss)}"
        shortfall = max(0.0, -gates.max_group_loss - value) if worse else 0.0
        yield GateResult(f"by {column}", not worse, required, value, shortfall, "; ".join(notes), warning=bool(small))


def check_exports(evidence: Evidence, gates: Gates) -> Iterable[GateResult]:
    """Require the exported formats to reproduce the model's logits."""
    difference = evidence.provenance.difference
    return [_at_most("exported formats", difference, gates.max_difference, "logits differ by at most")]


def check_lineage(evidence: Evidence, gates: Gates) -> Iterable[GateResult]:
    """Require that no held-out case or tile is known to have been trained on."""
    provenance = evidence.provenance
    tiles, divided = provenance.seen_tiles, provenance.divided
    notes = [f"{tiles} held-out tiles are, byte for byte, ones that it has learned from"] if tiles else []
    if divided:
        more = f" and {count_of(len(divided) - 1, 'more slide')}" if len(divided) > 1 else ""
        declared = "slides.split_within_slide says that they are of different patients"
        notes.append(f"other regions of {divided[0]}{more} were learned from; {declared}")
    rule = "no held-out case in training or validation"
    unseen = _none("unseen cases", provenance.seen_cases, rule, "; ".join(notes))
    yield dataclasses.replace(unseen, warning=bool(divided))
    if provenance.unknown:
        note, count = "not known: " + "; ".join(provenance.unknown), float(len(provenance.unknown))
        passed = not gates.refuse_unknown
        missing = 0.0 if passed else count
        yield GateResult("known lineage", passed, "everything it was trained on", count, missing, note, warning=passed)


def check_digests(evidence: Evidence, gates: Gates) -> Iterable[GateResult]:
    """Require the card to record the training tiles and cases."""
    missing = evidence.provenance.missing
    return [_none("digests", len(missing), "tiles and cases on record", ", ".join(missing))]


def check_licenses(evidence: Evidence, gates: Gates) -> Iterable[GateResult]:
    """Require the licenses of all that taught the candidate to be allowed, and warn of those that restrict its use."""
    rules, teachers = gates.license, evidence.provenance.taught_by
    restricted = [each for each in teachers if each.license is None or not each.license.commercial]
    if rules.commercial:
        note = "; ".join(_tell_restriction(each) for each in restricted)
        yield _none("commercial use", len(restricted), "allowed by the licenses of all that taught it", note)
    if rules.allow is not None:
        allowed = {plain_name(name) for name in rules.allow}
        others = [each for each in teachers if each.license is None or plain_name(each.license.name) not in allowed]
        note = "; ".join(_tell_license(each) for each in others)
        yield _none("licenses", len(others), f"only {', '.join(rules.allow)}", note)
    if restricted and not rules.commercial and rules.allow is None:
        note = "; ".join(_tell_restriction(each) for each in restricted)
        yield GateResult("licenses", True, "-", float(len(restricted)), 0.0, note, warning=True)


GATES: tuple[Gate, ...] = (  # in table order
    check_floors,
    check_ceilings,
    check_constant,
    check_champion,
    check_best_earlier,
    check_groups,
    check_exports,
    check_lineage,
    check_digests,
    check_licenses,
)


def _not_worse(name: str, rivalry: ChampionComparison, score: Score, gates: Gates) -> GateResult:
    note = (
        f"{score.main.replace('_', ' ')} {rivalry.difference:+.4f} ({rivalry.low:+.4f} to {rivalry.high:+.4f}) "
        f"against {rivalry.figure:.4f} of version {rivalry.champion}"
    )
    if math.isnan(rivalry.low):
        note += f"; an interval needs held-out tiles of several cases, {LEAST_CASES} at least"
    note += f"; {rivalry.note}" if rivalry.note else ""
    if gates.max_regression == 1 and math.isnan(rivalry.low) and math.isfinite(rivalry.difference):
        return GateResult(name, True, "at least -1", rivalry.difference, 0.0, note)  # no figure can be worse
    return dataclasses.replace(_at_least(name, rivalry.low, -gates.max_regression, note), warning=bool(rivalry.note))


def _tell_restriction(teacher: TaughtBy) -> str:
    license = teacher.license
    if license is None:
        return _tell_license(teacher)
    said = "forbids" if license.commercial is False else "is not known to allow"
    return f"{license.name} of {teacher.name} {said} commercial use of models that it taught ({license.source})"


def _tell_license(teacher: TaughtBy) -> str:
    if teacher.license is None:
        return f"{teacher.name} has no license on record, which gates.license.stated can give"
    return f"{teacher.name} has {teacher.license.name} ({teacher.license.source})"


def _tries(tries: int) -> GateResult:
    """Warn how likely one of that many equally good models passes "surely better" by chance."""
    lucky = 1 - (1 - ONE_SIDED) ** tries
    note = f"of {tries} models no better than the champion, one seems surely better with a chance of up to {lucky:.0%}"
    return GateResult("tries", True, "candidates on these tiles", float(tries), 0.0, note, warning=True)


def _at_least(name: str, value: float, limit: float, note: str = "") -> GateResult:
    return _result(name, f"at least {_number(limit)}", value, limit - value, note)


def _at_most(name: str, value: float, limit: float, required: str = "at most") -> GateResult:
    return _result(name, f"{required} {_number(limit)}", value, value - limit)


def _result_of(result: GateResult) -> str:
    if not result.passed:
        return _failure(result)
    return "WARNING" if result.warning else "passed"


def _none(name: str, count: int, required: str, note: str = "") -> GateResult:
    return _result(name, required, float(count), float(count), note)


def _result(name: str, required: str, value: float, missing: float, note: str = "") -> GateResult:
    passed = math.isfinite(value) and missing <= ROUNDING  # a comparison with nan is False
    return GateResult(name, passed, required, value, 0.0 if passed else missing, note)


def _failure(result: GateResult) -> str:
    if result.shortfall == 0:  # of a value that must be more than another
        return "FAILED, equal"
    return f"FAILED by {result.shortfall:.3g}" if math.isfinite(result.shortfall) else "FAILED"


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.4f}"
