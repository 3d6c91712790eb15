"""Whether the tile set at an output is finished and whole, and what of its shards is there."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from histill.errors import InputError
from histill.storage.control import exists, list_sizes, measure_files
from histill.storage.uris import join
from histill.tiles.claim import Claim
from histill.tiles.manifest import HEADER_NAME, Manifest, read_manifest
from histill.tiles.parts import SHARDS, Unit
from histill.tiles.slide_records import find_replaced, read_slides

_logger = logging.getLogger(__name__)

_ASKED_AT_ONCE = 8  # slides


def find_finished(claim: Claim, *, begun: bool) -> Manifest | None:
    """The tile set at the output with all its shards; None when there is something to be made.

    What cannot be read of a set that this configuration has `begun` is made again.
    Raises InputError when the output belongs to another configuration, or a slide has been replaced.
    """
    if not exists(join(claim.output, HEADER_NAME), claim.storage):
        return None
    try:
        manifest = read_manifest(claim.output, claim.storage)
        records = [] if manifest.header.slides is None else list(read_slides(manifest, claim.storage).values())
    except InputError as error:
        if not begun:
            raise
        _logger.warning("the tile set is made again, from what is there of it: %s", error)
        return None
    if manifest.header.ingest != claim.digest:
        raise InputError(f"{claim.output} holds tiles of another configuration; name another output or empty this one.")
    # Its tiles would be the old slide's.
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        replaced = pool.map(lambda record: find_replaced(record, claim.storage), records)
        for record, other in zip(records, replaced, strict=True):
            if other:
                raise InputError(
                    f"slide {record.source} has been replaced since {claim.output} was cut from it; name another "
                    "output, or put the old slide back."
                )
    names = manifest.table["shard"].unique().to_pylist()
    found = measure_files(claim.output, names, claim.storage)
    if len(found) == len(names) and sum(found.values()) == manifest.header.shard_bytes:
        return manifest
    _logger.warning("shards of %s are missing or cut short and are made again", claim.output)
    return None


def add_shard_sizes(units: Sequence[Unit], claim: Claim) -> list[Unit]:
    """The units, with the sizes of those of their shards that are there."""
    folder = join(SHARDS, claim.stamp)
    there: dict[str, dict[str, int]] = {}
    for name, size in list_sizes(join(claim.output, folder), claim.storage).items():
        there.setdefault(name.rpartition("-")[0], {})[join(folder, name)] = size
    return [replace(unit, there=there.get(unit.name.rpartition("/")[2], {})) for unit in units]
