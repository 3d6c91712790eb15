"""Verdicts on single places, and table rows that group equal verdicts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from histill.cluster.ray_errors import unwrap_error
from histill.cluster.ray_logging import is_verbose
from histill.config.redact import print_trace
from histill.registry.mlflow_client import strip_userinfo

DRIVER = "driver"  # this process, as a place beside the nodes' names
State = Literal["ok", "warning", "failed", "skipped"]
_NAMES_SHOWN = 3
_LOOK_CLOSER = "run it again with --verbose, which shows all logs and tracebacks"


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check in one place; `fix` says how to resolve a failure or a warning."""

    state: State
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the table: one verdict and the places it applies to."""

    check: str
    where: str
    state: State
    found: str
    fix: str = ""


def row(check: str, where: str, verdict: Verdict) -> Row:
    """Make the row of one verdict."""
    return Row(check, where, verdict.state, verdict.found, verdict.fix)


def gather_rows(check: str, verdicts: Mapping[str, Verdict], nodes: int) -> list[Row]:
    """Group verdicts on the driver and nodes into one row per distinct verdict, in order of first place.

    Args:
        check: the check's name.
        verdicts: place -> verdict.
        nodes: number of nodes, so that a row for all of them need not name each.
    """
    by_verdict: dict[Verdict, list[str]] = {}
    for place, verdict in verdicts.items():
        by_verdict.setdefault(verdict, []).append(place)
    return [row(check, _where(places, nodes), verdict) for verdict, places in by_verdict.items()]


def judge_places(
    places: Sequence[str], bad: Mapping[str, Verdict], well: Callable[[list[str]], Verdict]
) -> dict[str, Verdict]:
    """Place -> its verdict in `bad`, or the verdict that `well` returns for all the others."""
    good = [place for place in places if place not in bad]
    verdict = well(good) if good else None
    return {place: bad[place] if place in bad or verdict is None else verdict for place in places}


def verdict_of(error: BaseException, advice: str = "") -> Verdict:
    """The `failed` verdict for an error: the message and code of a HistillError, else the type and first line.

    `advice` is the fix if the error names none.
    """
    if is_verbose():
        print_trace(error)
    known = unwrap_error(error)
    if known is not None:
        said, _, fix = str(known).rstrip(".").partition("; ")
        found = f"{said} [{known.code}]"
    else:
        cause = getattr(error, "cause", None) or error
        lines = str(cause).strip().splitlines()
        kind = type(cause).__name__
        found, fix = f"{kind}: {lines[0][:200]}" if lines else kind, ""
    return Verdict("failed", strip_userinfo(found), fix or advice or _LOOK_CLOSER)


def run_isolated(check: str, where: str, look: Callable[[], list[Row]]) -> list[Row]:
    """The rows of one check; a `failed` row if it raises."""
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
