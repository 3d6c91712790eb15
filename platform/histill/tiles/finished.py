"""Check whether the tile set at an output is finished and complete, and which shards exist."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from histill.cluster.sharded import ShardedFolder
from histill.errors import InputError
from histill.storage.control import list_sizes
from histill.storage.uris import join
from histill.tiles.claim import Claim
from histill.tiles.manifest import HEADER_NAME, Manifest
from histill.tiles.manifest_file import read_manifest
from histill.tiles.part_shards import SHARDS
from histill.tiles.parts import Unit
from histill.tiles.slide_records import SlideRecord, find_replaced, find_replaced_annotations, read_slides

_ASKED_AT_ONCE = 8  # slides checked concurrently


def find_finished(claim: Claim, *, begun: bool) -> Manifest | None:
    """The tile set at the output if it is finished and has all its shards, if any; None when there is work to do.

    If this configuration has `begun` the set, unreadable files of it are made again.
    Raises InputError when the output belongs to another configuration, or a slide or annotations have been replaced.
    """
    folder = ShardedFolder(claim.output, HEADER_NAME, claim.storage)
    found = folder.read_header(lambda: _read(claim), repair=begun)
    if found is None:
        return None
    manifest, records = found
    if manifest.header.ingest != claim.digest:
        raise InputError(
            f"{claim.output} holds tiles of another configuration; name another output or empty this one.",
            code="output-taken",
        )
    # The tiles of a replaced slide, and labels of replaced annotations, would be those of the old one.
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        for uri in pool.map(lambda record: find_replaced_annotations(record, claim.storage), records):
            if uri is not None:
                raise InputError(
                    f"the annotations {uri} have been replaced since {claim.output} was cut with them; name another "
                    "output, or put the old ones back.",
                    code="input-changed",
                )
        replaced = pool.map(lambda record: find_replaced(record, claim.storage), records)
        for record, other in zip(records, replaced, strict=True):
            if other:
                raise InputError(
                    f"slide {record.source} has been replaced since {claim.output} was cut from it; name another "
                    "output, or put the old slide back.",
                    code="input-changed",
                )
    header = manifest.header
    if not header.cut or folder.is_whole(manifest.shards(), header.shard_bytes, index_as=header.digest):
        return manifest
    return None


def _read(claim: Claim) -> tuple[Manifest, list[SlideRecord]]:
    manifest = read_manifest(claim.output, claim.storage, cut=False)
    if manifest.header.slides is None:
        return manifest, []
    return manifest, list(read_slides(manifest, claim.storage).values())


def add_shard_sizes(units: Sequence[Unit], claim: Claim) -> list[Unit]:
    """The units, with the sizes of their shards that exist already."""
    folder = join(SHARDS, claim.stamp)
    there: dict[str, dict[str, int]] = {}
    for name, size in list_sizes(join(claim.output, folder), claim.storage).items():
        there.setdefault(name.rpartition("-")[0], {})[join(folder, name)] = size
    return [replace(unit, there=there.get(unit.name.rpartition("/")[2], {})) for unit in units]
