"""The conditions between a candidate and the champion's place; pure functions of figures."""

import math
from dataclasses import dataclass

from tabulate import tabulate

from histill.config.scoring import Gates
from histill.errors import InputError
from histill.evaluate.score import Score

ROUNDING = 1e-9  # a Dice that equals its limit must pass: 0.8 - 0.1 is more than 0.7 in binary
COSTS = ("gmacs", "parameters")


@dataclass(frozen=True)
class Rivalry:
    """A candidate beside the champion, on the same tiles: the candidate's main figure less the champion's.

    `low` and `high` hold the middle 95 % of it over redrawn cases, the same for both models.
    """

    champion: str  # its version
    figure: float
    difference: float
    low: float
    high: float
    gmacs: float


@dataclass(frozen=True)
class Provenance:
    """What is known of a candidate beside its score."""

    missing: tuple[str, ...]  # digests that its card should hold and does not
    seen_cases: int  # held-out cases that it was trained on
    difference: float  # most that the logits of its exported formats differ from its own


@dataclass(frozen=True)
class GateResult:
    """One gate's decision.

    `name` is the gate, `required` what passes it in words, `value` what was found. `shortfall` says by how much it is
    missed: 0 when the gate is passed, nan where no figure can tell.
    """

    name: str
    passed: bool
    required: str
    value: float
    shortfall: float
    note: str = ""


def judge(score: Score, rivalry: Rivalry | None, provenance: Provenance, gates: Gates) -> tuple[GateResult, ...]:
    """Put a candidate through every gate: nan fails, a figure that equals its limit passes.

    Raises InputError for a floor or ceiling of a figure that its model does not have.
    """
    known = score.figures | {name: float(getattr(score, name)) for name in COSTS}
    for name in (*gates.floors, *gates.ceilings):
        if name not in known:
            raise InputError(f"gates name the figure {name!r}; the model has {', '.join(known)}: name one of these.")
    return (
        *(_at_least(name, known[name], limit) for name, limit in gates.floors.items()),
        *(_at_most(name, known[name], limit) for name, limit in gates.ceilings.items()),
        *_against(score, rivalry, gates),
        _at_most("exported formats", provenance.difference, gates.max_difference, "logits differ by at most"),
        _none("unseen cases", provenance.seen_cases, "no held-out case in training"),
        _none("digests", len(provenance.missing), "tiles and cases on record", ", ".join(provenance.missing)),
    )


def gate_table(results: tuple[GateResult, ...]) -> str:
    """The decisions as text, a row each: what was required, what was found, and by how much it failed."""
    rows = [
        (each.name, each.required, _number(each.value), "passed" if each.passed else _failure(each), each.note)
        for each in results
    ]
    return tabulate(rows, headers=("gate", "required", "candidate", "result", ""), disable_numparse=True)


def _against(score: Score, rivalry: Rivalry | None, gates: Gates) -> tuple[GateResult, ...]:
    """Not worse than the champion by more than the margin; and surely better, or cheaper."""
    main = score.main.replace("_", " ")
    if rivalry is None:
        note = "no champion yet"
        return (GateResult("not worse", True, "-", score.figures[score.main], 0.0, note),)
    note = (
        f"{main} {rivalry.difference:+.4f} ({rivalry.low:+.4f} to {rivalry.high:+.4f}) "
        f"against {rivalry.figure:.4f} of version {rivalry.champion}"
    )
    if math.isnan(rivalry.low):
        note += "; a spread needs held-out tiles of several cases"
    results = [_at_least("not worse", rivalry.low, -gates.max_regression, note)]
    if gates.cheaper is not None:
        share = score.gmacs / rivalry.gmacs if rivalry.gmacs else math.nan
        better, cheaper = rivalry.low > 0, share <= gates.cheaper + ROUNDING
        required = f"more than 0, or at most {gates.cheaper:.0%} of its cost"
        missing = 0.0 if better or cheaper else -rivalry.low
        note = f"{share:.0%} of the champion's GMACs"
        results.append(GateResult("better or cheaper", better or cheaper, required, rivalry.low, missing, note))
    return tuple(results)


def _at_least(name: str, value: float, limit: float, note: str = "") -> GateResult:
    return _result(name, f"at least {_number(limit)}", value, limit - value, note)


def _at_most(name: str, value: float, limit: float, required: str = "at most") -> GateResult:
    return _result(name, f"{required} {_number(limit)}", value, value - limit)


def _none(name: str, count: int, required: str, note: str = "") -> GateResult:
    return _result(name, required, float(count), float(count), note)


def _result(name: str, required: str, value: float, missing: float, note: str = "") -> GateResult:
    passed = math.isfinite(value) and missing <= ROUNDING  # a comparison with nan is False
    return GateResult(name, passed, required, value, 0.0 if passed else missing, note)


def _failure(result: GateResult) -> str:
    return f"FAILED by {result.shortfall:.3g}" if math.isfinite(result.shortfall) else "FAILED"


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.4f}"
