"""Rows of the probe, and the table of them."""

import io
import re
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histill.errors import InputError
from histill.preflight.results import DRIVER, Row, State, Verdict, gather_rows, judge_places, run_isolated, verdict_of
from histill.preflight.table import format_table, summarize, terminal_width, wants_color

pytestmark = pytest.mark.unit

STATES: tuple[State, ...] = ("ok", "warning", "failed", "skipped")
WORDS = st.lists(st.text("abc/:-", min_size=1, max_size=12), min_size=1, max_size=30).map(" ".join)
ROWS = st.lists(st.builds(Row, st.text("abc", min_size=1), st.just("here"), st.sampled_from(STATES), WORDS, WORDS))
OK = Verdict("ok", "well")
BAD = Verdict("failed", "broken", "fix it")


@given(st.dictionaries(st.text("abcd", min_size=1, max_size=3), st.sampled_from([OK, BAD]), max_size=3))
def test_every_place_is_in_one_row_and_every_row_is_another_verdict(verdicts: dict[str, Verdict]) -> None:
    rows = gather_rows("check", verdicts, nodes=9)
    said = [(place, row.state) for row in rows for place in row.where.split(", ")]
    assert sorted(said) == sorted((place, verdict.state) for place, verdict in verdicts.items())
    assert len({row.state for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("places", "nodes", "where"),
    [
        ([DRIVER], 3, "driver"),
        (["a", DRIVER], 1, "driver, a"),
        (["a", "b", "c", DRIVER], 3, "driver, 3 nodes"),
        (["a", "b", "c"], 9, "a, b, c"),
        (["a", "b", "c", "d", "e"], 9, "a, b, c, 2 more"),
    ],
)
def test_many_places_are_counted(places: list[str], nodes: int, where: str) -> None:
    (row,) = gather_rows("check", dict.fromkeys(places, OK), nodes)
    assert row.where == where


def test_the_good_places_share_a_verdict() -> None:
    asked: list[list[str]] = []

    def well(good: list[str]) -> Verdict:
        asked.append(good)
        return OK

    assert judge_places(["a", "b", "c"], {"b": BAD}, well) == {"a": OK, "b": BAD, "c": OK}
    assert judge_places(["b"], {"b": BAD}, well) == {"b": BAD}
    assert asked == [["a", "c"]]


@pytest.mark.parametrize(
    ("error", "advice", "found", "fix"),
    [
        (InputError("it is gone; make it.", code="bucket-missing"), "look", "it is gone [bucket-missing]", "make it"),
        (InputError("it refused.", code="tracking-refused"), "look", "it refused [tracking-refused]", "look"),
        (ValueError("first\nsecond"), "look", "ValueError: first", "look"),
        (ValueError(), "", "ValueError", "run it again with --verbose, which shows all logs and tracebacks"),
    ],
)
def test_an_error_is_found_and_mend(error: Exception, advice: str, found: str, fix: str) -> None:
    assert verdict_of(error, advice) == Verdict("failed", found, fix)


def test_an_address_with_a_password_is_not_shown() -> None:
    assert "hunter2" not in verdict_of(ValueError("cannot open http://id:hunter2@host:5000/x")).found


def test_a_check_that_breaks_is_a_red_row_of_its_own() -> None:
    def look() -> list[Row]:
        raise ZeroDivisionError("by nothing")

    (row,) = run_isolated("clock", "cluster", look)
    assert (row.check, row.where, row.state) == ("clock", "cluster", "failed")
    assert "by nothing" in row.found


@given(ROWS, st.integers(40, 140))
def test_the_table_loses_no_word_and_keeps_to_its_width(rows: list[Row], width: int) -> None:
    drawn = format_table(rows, width)
    words = set(drawn.split())
    assert all(word in words for row in rows for word in (*row.found.split(), *row.fix.split()))
    taken = max((len(row.check) for row in rows), default=0)
    if width - taken >= 60:
        assert max(map(len, drawn.splitlines()[:-1])) <= width


@given(ROWS)
def test_colors_add_nothing_but_colors(rows: list[Row]) -> None:
    assert re.sub(r"\033\[\d+m", "", format_table(rows, colors=True)) == format_table(rows)


def test_the_mend_stands_below_what_was_found() -> None:
    lines = format_table([Row("write", "driver", "failed", "s3://b refuses", "set the key")]).splitlines()
    assert lines[2].split() == ["write", "driver", "failed", "s3://b", "refuses"]
    assert lines[3].strip() == "-> set the key"
    assert lines[3].index("->") == lines[2].index("s3://b")


def test_the_last_line_counts_and_says_what_follows() -> None:
    rows = [Row("a", "here", state, "x") for state in ("ok", "failed", "ok", "warning")]
    assert summarize(rows) == "2 ok, 1 warning, 1 failed; fix what failed, and run the same command again."
    assert summarize(rows[:1]) == "1 ok."


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colors_and_width_are_a_terminals() -> None:
    with patch.dict("os.environ", {"COLUMNS": "70"}) as environment:
        environment.pop("NO_COLOR", None)
        assert wants_color(Terminal())
        assert not wants_color(io.StringIO())
        assert (terminal_width(Terminal()), terminal_width(io.StringIO())) == (70, 120)
        environment["NO_COLOR"] = "1"
        assert not wants_color(Terminal())
