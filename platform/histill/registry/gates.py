"""The conditions between a candidate and the champion's place; pure functions of figures."""

import math
from dataclasses import dataclass, replace

from tabulate import tabulate

from histill.config.scoring import Gates

ROUNDING = 1e-9  # a Dice that equals its limit must pass: 0.8 - 0.1 is more than 0.7 in binary
_CEILINGS = ("max_gmacs", "max_parameters")


@dataclass(frozen=True)
class Figures:
    """What the gates look at: the scores of one model on the held-out tiles, and its cost."""

    dice: float
    miou: float
    gmacs: float
    parameters: int
    tiles: int
    tiles_digest: str


@dataclass(frozen=True)
class GateResult:
    """One gate's decision.

    `name` is the key under `gates` that sets it. `limit` is the least or most that passes, nan where there is
    none. `shortfall` says by how much `value` misses it: 0 when the gate is passed, nan where no figure can
    tell.
    """

    name: str
    passed: bool
    value: float
    limit: float
    shortfall: float
    note: str = ""


def judge(candidate: Figures, champion: Figures | None, gates: Gates) -> tuple[GateResult, ...]:
    """Put the candidate through every gate that is set: nan fails, a figure that equals its limit passes."""
    results = [_at_least("min_dice", candidate.dice, gates.min_dice), _regression(candidate, champion, gates)]
    if gates.max_gmacs is not None:
        results.append(_at_most("max_gmacs", candidate.gmacs, gates.max_gmacs))
    if gates.max_parameters is not None:
        results.append(_at_most("max_parameters", candidate.parameters, gates.max_parameters))
    return tuple(results)


def gate_table(results: tuple[GateResult, ...]) -> str:
    """The decisions as text, a row each: what was required, what was found, and by how much it failed."""
    rows = [
        (
            result.name,
            _required(result),
            _number(result.value),
            "passed" if result.passed else _failure(result),
            result.note,
        )
        for result in results
    ]
    return tabulate(rows, headers=("gate", "required", "candidate", "result", ""), disable_numparse=True)


def _regression(candidate: Figures, champion: Figures | None, gates: Gates) -> GateResult:
    """Dice against the champion's, which says something only when both were scored on the same tiles."""
    name, nan = "max_regression", math.nan
    if champion is None:
        return GateResult(name, True, candidate.dice, nan, 0.0, "no champion yet")
    if (candidate.tiles_digest, candidate.tiles) != (champion.tiles_digest, champion.tiles):
        note = f"champion scored on {_tiles(champion)}, not {_tiles(candidate)}"
        return GateResult(name, False, candidate.dice, nan, nan, note)
    result = _at_least(name, candidate.dice, champion.dice - gates.max_regression)
    return replace(result, note=f"champion {champion.dice:.4f}")


def _at_least(name: str, value: float, limit: float) -> GateResult:
    return _result(name, value, limit, limit - value)


def _at_most(name: str, value: float, limit: float) -> GateResult:
    return _result(name, value, limit, value - limit)


def _result(name: str, value: float, limit: float, missing: float) -> GateResult:
    passed = math.isfinite(value) and missing <= ROUNDING  # a comparison with nan is False
    return GateResult(name, passed, value, limit, 0.0 if passed else missing)


def _tiles(figures: Figures) -> str:
    return f"{figures.tiles} tiles of set {figures.tiles_digest[:12]}"


def _required(result: GateResult) -> str:
    if not math.isfinite(result.limit):
        return "-"
    return f"{'at most' if result.name in _CEILINGS else 'at least'} {_number(result.limit)}"


def _failure(result: GateResult) -> str:
    return f"FAILED by {result.shortfall:.3g}" if math.isfinite(result.shortfall) else "FAILED"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
