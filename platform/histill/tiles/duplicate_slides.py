"""Detect slides that are listed under several names."""

from itertools import combinations

from histill.config.ingest_tiles import IngestConfig
from histill.errors import InputError
from histill.tiles.slide_index import SlideRow
from histill.tiles.splits import assign_split

Sightings = dict[str, list[SlideRow]]
"""The rows of each slide, by an identity that is the same for all its names."""


def add_sighting(seen: Sightings, identity: str, row: SlideRow, config: IngestConfig) -> None:
    """Add a row to those of its slide.

    Raises InputError when tissue of one slide would be in two splits. Only regions that do not overlap may be, if
    `slides.split_within_slide` says that they are of different patients.
    """
    earlier = seen.setdefault(identity, [])
    for other in earlier:
        _check_pair(other, row, config)
    earlier.append(row)


def _check_pair(one: SlideRow, other: SlideRow, config: IngestConfig) -> None:
    assert config.slides is not None
    here, there = assign_split(one.case, config.split), assign_split(other.case, config.split)
    apart = not one.overlaps(other)
    if here == there or (apart and config.slides.split_within_slide):
        return
    cases = f"the cases {one.case!r} ({here}) and {other.case!r} ({there})"
    if one.uri == other.uri:
        said = f"regions of the slide {one.uri} are {cases}"
        fix = "give them one case"
    else:
        said = f"{one.uri} and {other.uri} are one slide and {cases}"
        fix = "remove one of them, or give both one case"
    if apart:
        fix += ", or set slides.split_within_slide if they are of different patients (a tissue microarray)"
    raise InputError(f"{said}: one patient's tissue would lie in two splits; {fix}.", code="slide-duplicated")


def note_doubles(seen: Sightings) -> tuple[str, ...]:
    """A note for each slide that is in the set twice, or whose regions count as several cases."""
    notes = []
    for rows in seen.values():
        files = tuple(dict.fromkeys(row.uri for row in rows))
        cases = tuple(dict.fromkeys(row.case for row in rows))
        if any(one.overlaps(other) for one, other in combinations(rows, 2)):
            counted = "" if len(cases) == 1 else f", and it counts as {len(cases)} cases ({', '.join(cases)})"
            notes.append(f"{' and '.join(files)} are one slide: its tiles are in the set more than once{counted}.")
        elif len(cases) > 1:
            notes.append(f"regions of the slide {files[0]} count as {len(cases)} cases ({', '.join(cases)}).")
    return tuple(notes)
