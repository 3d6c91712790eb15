"""A first pass over all annotations of a set, so that a misspelled class is found before hours of cutting."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from histill.cluster.parallel import map_tasks
from histill.cluster.progress import track
from histill.config.annotations import Annotations
from histill.config.common import Storage
from histill.errors import InputError
from histill.tiles.annotations import NAMED, check_labels, label_of, read_annotations
from histill.tiles.parts import Unit
from histill.tiles.sources import Unreadable


@dataclass(frozen=True)
class Survey:
    """What a file of annotations holds. Small, because it is sent from a task."""

    uri: str
    classes: Mapping[str | None, int] = field(default_factory=dict)  # polygons of each; None: without a class
    left_out: Mapping[str, int] = field(default_factory=dict)  # points, lines and the like
    unreadable: str | None = None


@dataclass(frozen=True)
class Surveyed:
    """The result: a sentence for each file that cannot be read, and the notes."""

    unreadable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def survey_annotations(units: Sequence[Unit], threads: int | None) -> Surveyed:
    """Read the annotations of all slides once. `threads` is that of `map_tasks`.

    Raises InputError for a class in the configuration that no file has, and for a label without a place in masks.
    """
    config = units[0].config
    rules = config.slides.annotations if config.slides else None
    files = list(dict.fromkeys(unit.slide.annotations for unit in units if unit.slide and unit.slide.annotations))
    if rules is None or not files:
        return Surveyed()
    items = [(uri, config.storage) for uri in files]
    surveys = map_tasks(_survey, items, at_once=config.workers.count, threads=threads)
    by_uri = {each.uri: each for each in track(surveys, len(files), title="reading annotations", unit="slides")}
    found = [by_uri[uri] for uri in files]
    unreadable = tuple(each.unreadable for each in found if each.unreadable is not None)
    if not unreadable:
        _check_names(rules, found)
    for each in found:
        check_labels([label_of(name, rules) for name in each.classes], rules, each.uri)
    return Surveyed(unreadable, tuple(_describe(rules, found)))


def _survey(item: tuple[str, Storage]) -> Survey:
    """Read one file; runs as a task on the cluster."""
    uri, storage = item
    try:
        file = read_annotations(uri, storage)
    except Unreadable as reason:
        return Survey(uri, unreadable=str(reason))
    return Survey(uri, dict(file.count_classes()), dict(file.left_out))


def _check_names(rules: Annotations, found: Sequence[Survey]) -> None:
    """Raise InputError for a class that is named and that no annotation has."""
    there = sorted({name for each in found for name in each.classes if name is not None})
    bases = {name.partition(":")[0].strip() for name in there}
    for key, names in (("classes", rules.classes or ()), ("regions", rules.regions)):
        missing = [name for name in names if name not in there and not (key == "classes" and name in bases)]
        if missing:
            shown = ", ".join(there[:NAMED]) + (" and more" if len(there) > NAMED else "")
            raise InputError(
                f"slides.annotations.{key} names the class {missing[0]!r}, and no annotation has it; they have "
                f"{shown or 'none'}: correct the name, or leave it out.",
                code="annotations-class",
            )


def _describe(rules: Annotations, found: Sequence[Survey]) -> list[str]:
    """A sentence for everything in the annotations that is not used."""
    notes = []
    counts = sum((Counter(each.classes) for each in found), Counter[str | None]())
    if without := counts.pop(None, 0):
        notes.append(f"annotated polygons without a class, which are not used: {without}.")
    unused = {
        name: count
        for name, count in counts.items()
        if name not in rules.regions and (not rules.draws or label_of(name, rules) is None)
    }
    if unused:
        shown = ", ".join(f"{name} ({count})" for name, count in sorted(unused.items(), key=str)[:NAMED])
        more = f" and {len(unused) - NAMED} more" if len(unused) > NAMED else ""
        notes.append(f"annotated classes that are not used, and their polygons: {shown}{more}.")
    others = sum((Counter(each.left_out) for each in found), Counter[str]())
    if others:
        first = next(each.uri for each in found if each.left_out)
        shown = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items())[:NAMED])
        notes.append(f"annotations that are no polygons, which are not used: {shown} (first: {first}).")
    empty = [each.uri for each in found if not each.classes and each.unreadable is None]
    if empty:
        notes.append(f"{len(empty)} files of annotations hold no polygon (first: {empty[0]}).")
    return notes
