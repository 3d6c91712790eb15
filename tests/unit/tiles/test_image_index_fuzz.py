"""Generated indexes: each row is read as it was meant, or the index is refused in one sentence with the line.

The files are written here value by value, not by a CSV library. HISTILL_FUZZ=20 tries twenty times as many.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from histill.config.common import Storage
from histill.config.ingest_tiles import Columns, ImageSource
from histill.errors import InputError
from histill.tiles.image_index import ImageIndex, read_image_index

pytestmark = pytest.mark.unit
TIMES = int(os.environ.get("HISTILL_FUZZ", "1"))
HEADER = ("image", "label", "case", "note")
CASES = ("007", "7", "M\u00fcller", "a case, quoted", 'the "third"', "=1+1")
LABELS = ("", "tumour", "stroma|fat", "d\u00e4mpf, er", "'x'")
NOTES = ("", "ok", "re-cut; twice", "5 \u00b5m", 'said "so"', "#")


def many(examples: int) -> Any:
    return settings(max_examples=examples * TIMES, suppress_health_check=list(HealthCheck))


@dataclass(frozen=True)
class Sheet:
    """The intended rows, and how they are written."""

    rows: list[tuple[str, ...]]
    quoted: list[bool]  # for each value in turn, whether it is quoted needlessly
    end: str
    mark: str
    gap: str  # a line without any value after the header

    def lines(self) -> list[str]:
        quotes = iter(self.quoted * 100)
        return [",".join(HEADER), *(",".join(written(value, next(quotes)) for value in row) for row in self.rows)]

    def text(self, lines: list[str] | None = None) -> str:
        first, *others = self.lines() if lines is None else lines
        between = [self.gap] if self.gap else []
        return self.mark + self.end.join([first, *between, *others]) + self.end


def written(value: str, quoted: bool) -> str:
    """RFC 4180, section 2."""
    escaped = value.replace('"', '""')
    return f'"{escaped}"' if quoted or escaped != value or "," in value else f" {value} "


@st.composite
def sheets(draw: st.DrawFn) -> Sheet:
    name = st.text(st.sampled_from("ab \u00e9e\u0301,;\"'#|/"), max_size=4)
    count = draw(st.integers(1, 6))
    others = st.tuples(*map(st.sampled_from, (LABELS, CASES, NOTES)))
    rows = [(f"{number}{draw(name)}.png", *draw(others)) for number in range(count)]
    return Sheet(
        rows,
        draw(st.lists(st.booleans(), min_size=1, max_size=5)),
        draw(st.sampled_from(["\n", "\r\n"])),
        draw(st.sampled_from(["", "\ufeff"])),
        draw(st.sampled_from(["", "", ",,,", " , ,,", "  "])),
    )


def read(folder: Path, data: str | bytes) -> ImageIndex | str:
    """The index, or the sentence of its refusal."""
    path = folder / "index.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    try:
        return read_image_index(ImageSource(index=str(path), columns=Columns(), mpp=0.5), Storage())
    except InputError as refusal:
        return str(refusal)


def read_rows(found: ImageIndex) -> list[tuple[str, str | None, str]]:
    return [(row.name, row.label, row.case) for row in found.rows]


@many(250)
@given(sheets())
def test_what_is_written_is_read(tmp_path: Path, sheet: Sheet) -> None:
    found = read(tmp_path, sheet.text())
    assert isinstance(found, ImageIndex), found
    assert read_rows(found) == [(row[0], row[1] or None, row[2]) for row in sheet.rows]
    said = " ".join(found.notes)
    assert ("left out (line 2)" in said) == bool(sheet.gap)
    unlabeled = [2 + bool(sheet.gap) + number for number, row in enumerate(sheet.rows) if not row[1]]
    assert (f"{len(unlabeled)} of {len(sheet.rows)} images have no label" in said) == bool(unlabeled)
    if unlabeled:
        assert f"line{'s' * (len(unlabeled) > 1)} {', '.join(map(str, unlabeled[:5]))}" in said
    assert "not used: note." in said


def one_value_less(line: str) -> str:
    return ",".join(line.split(",")[:2])


def one_value_more(line: str) -> str:
    return f"{line},x"


FAULTS: dict[str, Callable[[Sheet, int], tuple[str | bytes, str]]] = {
    "short row": lambda s, at: (s.text(changed(s, at, one_value_less)), f"line {line_of(s, at)} of .* has 2 values"),
    "long row": lambda s, at: (s.text(changed(s, at, one_value_more)), f"line {line_of(s, at)} of .* has 5 values"),
    "doubled": lambda s, at: (s.text([*s.lines(), s.lines()[at]]), lines_of(s, at)),
    "doubled by a dot": lambda s, at: (s.text([*s.lines(), "./" + plain_row(s, at)]), lines_of(s, at)),
    "doubled by a parent": lambda s, at: (s.text([*s.lines(), "q/../" + plain_row(s, at)]), lines_of(s, at)),
    "no case": lambda s, at: (s.text([*s.lines(), "z.png,tumour, ,"]), "has no value for 'case'"),
    "label in two ways": lambda s, at: (s.text([*s.lines(), "y.png,tumour,1,", "z.png,Tumour,1,"]), "in two ways"),
    "column twice": lambda s, at: (s.text(["image,label,case,label", *s.lines()[1:]]), "column 'label' twice"),
    "no such column": lambda s, at: (s.text(["image,label,Case,note", *s.lines()[1:]]), r"written 'Case'"),
    "semicolons": lambda s, at: ("image;label;case;note\n1;2;3;4\n", "separated by ';'"),
    "Latin-1": lambda s, at: (s.text([*s.lines(), "\u00e9.png,x,1,"]).encode("latin-1", "replace"), "not UTF-8 text"),
    "UTF-16": lambda s, at: (s.text().encode("utf-16"), "not UTF-8 text"),
    "NUL": lambda s, at: (s.text(changed(s, at, lambda line: line + "\0")), f"line {line_of(s, at)} of .* NUL"),
}  # fmt: skip


def changed(sheet: Sheet, at: int, how: Callable[[str], str]) -> list[str]:
    """The lines, with that of row `at` written without quotes and then changed."""
    lines = sheet.lines()
    lines[at] = how(f"{at}.png,x,1,")
    return lines


def plain_row(sheet: Sheet, at: int) -> str:
    """A row that names the image of row `at`, which needs no quotes."""
    return f"{sheet.rows[at - 1][0]},x,1,"


def line_of(sheet: Sheet, at: int) -> int:
    return 1 + at + bool(sheet.gap)


def lines_of(sheet: Sheet, at: int) -> str:
    return f"twice.*, on lines {line_of(sheet, at)} and {line_of(sheet, len(sheet.rows) + 1)};"


@many(150)
@given(sheets(), st.sampled_from(sorted(FAULTS)), st.integers(0, 5))
def test_a_fault_is_refused_with_its_line(tmp_path: Path, sheet: Sheet, fault: str, at: int) -> None:
    if fault.startswith("doubled by"):  # the path follows the dots unquoted
        sheet = Sheet([(f"{row[0][0]}.png", *row[1:]) for row in sheet.rows], sheet.quoted, sheet.end, "", sheet.gap)
    data, said = FAULTS[fault](sheet, 1 + at % len(sheet.rows))
    found = read(tmp_path, data)
    assert isinstance(found, str), found
    assert re.search(said, found), found
    assert re.fullmatch(r"[^\n]*\.", found), found


@many(150)
@given(sheets(), st.sampled_from(['"', ",", "\n", "\r", '""', '",', "\x85", "\u2028"]), st.integers(0, 10**6))
def test_a_stray_character_never_loses_a_row(tmp_path: Path, sheet: Sheet, stray: str, place: int) -> None:
    """A quote may be closed anywhere below: either all lines without one are read as written, or none is."""
    text = sheet.text()
    place = len(sheet.mark + sheet.lines()[0]) + place % (len(text) - len(sheet.mark + sheet.lines()[0]))
    text = text[:place] + stray + text[place:]
    found = read(tmp_path, text)
    if isinstance(found, str):
        assert re.fullmatch(r"[^\n]*\.", found), found
        return
    lines = [line for line in re.split(r"\r\n|\n|\r", text.lstrip("\ufeff"))[1:] if line.strip(' ,"\t\r\x85\u2028')]
    assert len(found.rows) == len(lines)
    for row, line in zip(read_rows(found), lines, strict=True):
        if '"' not in line:
            image, label, case, _ = (value.strip() for value in line.split(","))
            assert row == (image, label or None, case)
