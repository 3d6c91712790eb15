"""List the slides, or regions of slides, that a source names."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from histill.config.common import Storage
from histill.config.ingest_tiles import SlideSource
from histill.errors import InputError
from histill.storage.uris import beside, is_remote, stem, without_dots
from histill.tiles.index import Index, lines_named, plain, read_index
from histill.tiles.kept_columns import keep_values
from histill.tiles.resolution import PLAUSIBLE_MPP

WHOLE = (0.0, 0.0, 1.0, 1.0)
SIDES = ("left", "top", "right", "bottom")
COLUMNS = ("slide", "case", "mpp", *SIDES)
ANNOTATIONS = "annotations"
# Other common names of the column with cases, without `_`, `-` and spaces.
LIKE_CASE = ("patient", "patientid", "caseid", "subject", "subjectid", "participant", "participantid", "donor")


@dataclass(frozen=True)
class SlideRow:
    """A slide, or a region of one: `left`, `top`, `right`, `bottom` as fractions of width and height."""

    uri: str
    case: str
    mpp: float | None = None
    region: tuple[float, float, float, float] = WHOLE
    kept: tuple[str | None, ...] = ()  # its values in the columns that the tile set keeps
    annotations: str | None = None  # path or URI of a file

    @property
    def name(self) -> str:
        """The slide's name in tile ids and in the manifest: the file's, without its extension."""
        return stem(self.uri)

    @property
    def whole(self) -> bool:
        """Whether the row is for the whole slide."""
        return self.region == WHOLE

    def overlaps(self, other: "SlideRow") -> bool:
        """Whether the two regions overlap, provided that both are of the same slide."""
        one, two = self.region, other.region
        return max(one[0], two[0]) < min(one[2], two[2]) and max(one[1], two[1]) < min(one[3], two[3])


@dataclass(frozen=True)
class SlideIndex:
    """The slides, and a note for everything in the index that is not used."""

    rows: list[SlideRow]
    notes: tuple[str, ...]


def slide_rows(source: SlideSource, storage: Storage) -> list[SlideRow]:
    """The rows of `read_slide_index`."""
    return read_slide_index(source, storage).rows


def read_slide_index(source: SlideSource, storage: Storage, keep: Sequence[str] = ()) -> SlideIndex:
    """Read the slides that `source` names, with the further columns of the index to `keep`.

    Raises InputError for a row that cannot be parsed, and for slides of the same name or regions that overlap, whose
    tiles could not be told apart.
    """
    notes: tuple[str, ...] = ()
    if source.index is None:
        rows = [
            SlideRow(_tidy(path), case=plain(stem(path)), annotations=_tidy(region) if region else None)
            for path, region in zip(source.paths, source.regions or ("",) * len(source.paths), strict=True)
        ]
    else:
        index = read_index(source.index, storage, needed=("slide",))
        used = COLUMNS if source.annotations is None else (*COLUMNS, ANNOTATIONS)
        kept = keep_values(index, keep, COLUMNS)
        rows = [_row(source.index, *each, annotated=ANNOTATIONS in used) for each in zip(index.rows, kept, strict=True)]
        unused = index.unused((*used, *keep))
        notes = index.notes
        if unused:
            likely, said = _case_notes(source.index, index.columns, unused, used)
            others = [name for name in unused if name not in (likely, ANNOTATIONS)]
            notes += (f"columns of the index that are not used: {', '.join(others)}.",) if others else ()
            notes += said
        notes += _annotation_notes(source, index)
    named: dict[str, list[SlideRow]] = {}
    for row in rows:
        for earlier in named.setdefault(row.name, []):
            _check_pair(earlier, row)
        named[row.name].append(row)
    return SlideIndex(rows, notes)


def _annotation_notes(source: SlideSource, index: Index) -> tuple[str, ...]:
    """Notes on the column with annotations. Raises InputError when there is none and it is asked for."""
    there = ANNOTATIONS in index.columns
    if source.annotations is None:
        said = f"no tile is labeled: slides.annotations={{}} takes the labels from the column {ANNOTATIONS!r}."
        return (said,) if there else ()
    if not there:
        raise InputError(
            f"the index {source.index} has no column {ANNOTATIONS!r}; add it, with a file of QuPath (GeoJSON) or ASAP "
            "(XML) for each slide that has one, or leave out slides.annotations.",
            code="index-column-missing",
        )
    without = [line for line, values in zip(index.lines, index.rows, strict=True) if not values[ANNOTATIONS]]
    if not without:
        return ()
    return (f"{len(without)} of {len(index.rows)} slides have no annotations ({lines_named(without)}).",)


def _case_notes(
    uri: str, columns: Sequence[str], unused: Sequence[str], used: Sequence[str]
) -> tuple[str | None, tuple[str, ...]]:
    """A column that looks like cases, if there is no column `case`, and a note on it.

    Raises InputError for an unused column whose name differs from a known one only in upper case.
    """
    for name in unused:
        if name.casefold() in used and name.casefold() not in columns:
            raise InputError(
                f"the index {uri} has no column {name.casefold()!r} but one {name!r}, which nothing reads; rename it.",
                code="index-column-missing",
            )
    if "case" in columns:
        return None, ()
    likely = [name for name in unused if "".join(filter(str.isalnum, name.casefold())) in LIKE_CASE]
    if not likely:
        return None, ()
    return likely[0], (
        "each slide counts as a case of its own, and slides of one patient may lie in different splits: the index has "
        f"no column 'case'; rename {likely[0]!r} if it says whose they are.",
    )


def _check_pair(earlier: SlideRow, row: SlideRow) -> None:
    if earlier.uri != row.uri:
        raise InputError(
            f"{earlier.uri} and {row.uri} are both named {row.name!r}; rename one of the files.", code="index-duplicate"
        )
    if earlier.overlaps(row):
        raise InputError(
            f"slide {row.uri} is named twice with regions that overlap; give each row a region "
            "(left, top, right, bottom) of its own or remove one.",
            code="index-duplicate",
        )
    if earlier.mpp != row.mpp:
        raise InputError(
            f"slide {row.uri} is declared with two values of mpp, {earlier.mpp} and {row.mpp}; a slide has one.",
            code="mpp-contradicting",
        )


def _row(index: str, values: dict[str, str], kept: tuple[str | None, ...], *, annotated: bool) -> SlideRow:
    uri = _tidy(beside(index, values["slide"]))
    numbers: dict[str, float | None] = {}
    for column in ("mpp", *SIDES):
        text = values.get(column, "")
        try:
            numbers[column] = float(Fraction(text)) if text else None
        except (ValueError, ZeroDivisionError):
            raise InputError(
                f"{index}: {column} of slide {uri} is {text!r}; a number was expected.", code="index-wrong-value"
            ) from None
    given = [numbers[side] for side in SIDES if numbers[side] is not None]
    region = WHOLE
    if given:
        left, top, right, bottom = region = tuple(numbers[side] or 0.0 for side in SIDES)  # type: ignore[assignment]
        if len(given) < 4 or not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise InputError(
                f"{index}: the region of slide {uri} is {region}; fractions with 0 <= left < right <= 1 and "
                "0 <= top < bottom <= 1 were expected.",
                code="index-wrong-value",
            )
    mpp = numbers["mpp"]
    if mpp is not None and not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
        raise InputError(
            f"{index}: mpp of slide {uri} is {mpp:g}; between {PLAUSIBLE_MPP[0]} and {PLAUSIBLE_MPP[1]:g} "
            "microns per pixel were expected.",
            code="index-wrong-value",
        )
    file = values.get(ANNOTATIONS, "") if annotated else ""
    annotations = _tidy(beside(index, file)) if file else None
    return SlideRow(uri, plain(values.get("case", "") or stem(uri)), mpp, region, kept, annotations)


def _tidy(uri: str) -> str:
    """`uri` without `.` and `..`, so that one file has one name."""
    return without_dots(uri) if is_remote(uri) else os.path.normpath(uri)
