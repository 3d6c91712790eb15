"""Format the rows as a table: always in words, with color on terminals that support it."""

import os
import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from tabulate import tabulate

from histill.preflight.results import Row, State

WIDTH = 120  # columns, unless the terminal is narrower
_LEAST_FOUND = 30  # columns for findings, however narrow the terminal
_GAP = 2  # spaces that tabulate puts between columns and adds to a header
_COLORS: dict[State, str] = {"ok": "32", "warning": "33", "failed": "31", "skipped": "2"}


def wants_color(stream: TextIO) -> bool:
    """Whether to use colors on `stream`: it is a terminal and NO_COLOR is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def terminal_width(stream: TextIO) -> int:
    """The number of columns to fill on `stream`."""
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) if stream.isatty() else WIDTH


def format_table(rows: Sequence[Row], width: int = WIDTH, colors: bool = False) -> str:
    """Format the rows, each fix below its finding, and a summary line.

    Only words longer than a line (addresses) exceed `width` columns.
    """
    headers = ("check", "where", "state")
    cells = [(each.check, each.where, each.state) for each in rows]
    widths = [max([len(header) + _GAP, *map(len, column)]) for header, *column in zip(headers, *cells, strict=True)]
    room = max(_LEAST_FOUND, width - sum(widths) - _GAP * len(widths))
    lines = [
        (each.check, each.where, _paint(each.state, colors), "\n".join(_finding_and_fix(each, room))) for each in rows
    ]
    drawn = tabulate(lines, headers=(*headers, "finding -> fix"), disable_numparse=True)
    return f"{drawn}\n\n{summarize(rows)}"


def summarize(rows: Sequence[Row]) -> str:
    """Count the rows by state, with advice if any failed."""
    counts = Counter(each.state for each in rows)
    told = ", ".join(f"{counts[state]} {state}" for state in _COLORS if counts[state])
    advice = "; fix what failed, and run the same command again" if counts["failed"] else ""
    return f"{told}{advice}."


def _finding_and_fix(row: Row, room: int) -> list[str]:
    return _wrap(row.found, room, "") + (_wrap(row.fix, room, "-> ") if row.fix else [])


def _wrap(text: str, room: int, begin: str) -> list[str]:
    return textwrap.wrap(
        text,
        room,
        initial_indent=begin,
        subsequent_indent=" " * len(begin),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _paint(state: State, colors: bool) -> str:
    return f"\033[{_COLORS[state]}m{state}\033[0m" if colors else state
