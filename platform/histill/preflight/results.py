"""Verdicts on single places, and the rows that group equal verdicts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from histill.cluster.ray_errors import unwrap_error
from histill.cluster.ray_logging import is_verbose
from histill.config.redact import print_trace
from histill.registry.mlflow_client import strip_userinfo

DRIVER = "driver"  # the process that this is, among the names of nodes
State = Literal["ok", "warning", "failed", "skipped"]
_NAMES_SHOWN = 3
_LOOK_CLOSER = "run it again with --verbose, which shows all that was said"


@dataclass(frozen=True)
class Verdict:
    """How one check went in one place; `fix` says what to do about a failure or a warning."""

    state: State
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the table: one verdict, and the places that it is true of."""

    check: str
    where: str
    state: State
    found: str
    fix: str = ""


def row(check: str, where: str, verdict: Verdict) -> Row:
    """The row of one verdict."""
    return Row(check, where, verdict.state, verdict.found, verdict.fix)


def gather_rows(check: str, verdicts: Mapping[str, Verdict], nodes: int) -> list[Row]:
    """One row for each different verdict on the driver or a node, in the order of the first place.

    Args:
        check: the check's name.
        verdicts: place -> verdict.
        nodes: how many nodes there are, so that all of them need not be named.
    """
    by_verdict: dict[Verdict, list[str]] = {}
    for place, verdict in verdicts.items():
        by_verdict.setdefault(verdict, []).append(place)
    return [row(check, _where(places, nodes), verdict) for verdict, places in by_verdict.items()]


def judge_places(
    places: Sequence[str], bad: Mapping[str, Verdict], well: Callable[[list[str]], Verdict]
) -> dict[str, Verdict]:
    """Place -> its verdict in `bad`, or what `well` says of all the others."""
    good = [place for place in places if place not in bad]
    verdict = well(good) if good else None
    return {place: bad[place] if place in bad or verdict is None else verdict for place in places}


def verdict_of(error: BaseException, advice: str = "") -> Verdict:
    """The red verdict for an error: the sentence of a known one, else its kind and first line.

    `advice` is the fix where the error names none.
    """
    if is_verbose():
        print_trace(error)
    known = unwrap_error(error)
    if known is not None:
        found, _, fix = str(known).rstrip(".").partition("; ")
    else:
        cause = getattr(error, "cause", None) or error
        lines = str(cause).strip().splitlines()
        kind = type(cause).__name__
        found, fix = f"{kind}: {lines[0][:200]}" if lines else kind, ""
    return Verdict("failed", strip_userinfo(found), fix or advice or _LOOK_CLOSER)


def run_isolated(check: str, where: str, look: Callable[[], list[Row]]) -> list[Row]:
    """The rows of one check; a red one if it breaks."""
    try:
        return look()
    except Exception as error:
        return [row(check, where, verdict_of(error))]


def _where(places: Sequence[str], nodes: int) -> str:
    named = [place for place in places if place != DRIVER]
    if len(named) == nodes > 1:
        named = [f"{nodes} nodes"]
    elif len(named) > _NAMES_SHOWN:
        named = [*named[:_NAMES_SHOWN], f"{len(named) - _NAMES_SHOWN} more"]
    return ", ".join([DRIVER] * (DRIVER in places) + named)
