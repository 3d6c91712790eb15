"""A first pass over all masks of a set, so that values have the same meaning in every part of its ingest."""

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import or_

from histill.cluster.parallel import map_tasks
from histill.cluster.progress import track
from histill.errors import InputError
from histill.storage.control import remove
from histill.storage.records import read_record, write_record
from histill.storage.uris import join
from histill.tiles.images import READERS
from histill.tiles.masks import Values, find_meaning, mask_values
from histill.tiles.parts import Unit
from histill.tiles.sources import Unreadable, read_file


def find_set_meaning(units: Sequence[Unit], threads: int | None) -> dict[int, int] | None:
    """The class of each value of the masks of `units`; None if there are no masks. `threads` is that of
    `map_tasks`.

    It is given by `images.mask_values`, else derived from all masks together (`find_meaning`), independent of the
    number of units and the order in which they are read. An interrupted pass resumes; after an error, here or in a
    part, it starts over, since the masks are going to be changed. Unreadable masks are reported by their part.
    """
    source = units[0].config.images
    masked = [unit for unit in units if any(row.mask for row in unit.images)]
    if source is None or not masked:
        return None
    if source.mask_values is not None:
        return dict(source.mask_values)
    surveys = map_tasks(_survey, masked, at_once=units[0].config.workers.count, threads=threads)
    surveyed = dict(track(surveys, len(masked), title="reading masks", unit="parts"))
    try:
        return find_meaning(reduce(or_, (surveyed[unit.name] for unit in masked)), source.index)
    except InputError:
        for unit in masked:
            forget_survey(unit)
        raise


def forget_survey(unit: Unit) -> None:
    """Have the unit's masks read again by the next pass."""
    with contextlib.suppress(FileNotFoundError):
        remove(_record_uri(unit), unit.config.storage)


def _survey(unit: Unit) -> tuple[str, Values]:
    """The name of the unit and the values of its masks; runs as a task on the cluster."""
    storage = unit.config.storage
    with contextlib.suppress(FileNotFoundError, InputError):
        return unit.name, read_record(Values, _record_uri(unit), storage)

    def values(uri: str) -> Values | None:
        try:
            return mask_values(read_file(uri, storage), uri)
        except Unreadable:
            return None

    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(values, [row.mask for row in unit.images if row.mask]))
    whole = reduce(or_, (each for each in found if each), Values())
    if all(found):
        write_record(whole, _record_uri(unit), storage)
    return unit.name, whole


def _record_uri(unit: Unit) -> str:
    return join(unit.config.output, "parts", f"{unit.name}-masks.json")
