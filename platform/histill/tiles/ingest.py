"""Slides or images in, a tile set out, in parts that are each done once, whatever interrupts."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from histill.cluster.connect import connected
from histill.cluster.tasks import map_tasks
from histill.config.ingest import IngestConfig, SlideSource
from histill.errors import InputError
from histill.storage.control import exists, read_bytes, read_json, write_json
from histill.storage.uris import is_s3, join
from histill.tiles.doubles import Sightings, add_sighting, note_doubles
from histill.tiles.image_index import read_image_index
from histill.tiles.manifest import HEADER_NAME, Manifest, read_manifest, write_manifest
from histill.tiles.mask_survey import find_set_meaning
from histill.tiles.parts import Part, Unit, make_part
from histill.tiles.slide_index import read_slide_index
from histill.tiles.slide_records import find_replaced, join_regions, read_slides
from histill.tiles.slides import SlideRow, opened, scale_to, slide_mpp
from histill.tiles.sources import Unreadable
from histill.tiles.splits import check_pinned
from histill.tiles.summary import equal_content, image_notes

RECORD_NAME = "ingest.json"
# Keys that change no tile.
NOT_CONTENT: Any = {"storage": True, "output": True, "max_unreadable": True, "slides": {"split_within_slide"}}
NAMED = 5  # unreadable files that an error lists
OPENERS = 8  # slides opened at once to ask for their resolution


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did.

    `skipped` holds a sentence for each slide or image that gave no tile, `notes` one for whatever else of the sources
    a user should know; both stand in the header as well.
    """

    manifest: Manifest
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    reused: bool
    parts_done: int
    parts_reused: int


def ingest(config: IngestConfig) -> IngestReport:
    """Make the tile set that `config` describes, or go on with it; a finished one is only read.

    The work is divided into parts (a slide, or `rows_per_shard` images), each marked as done when its shards are
    written; repeating an interrupted ingest does the others. Parts with unreadable files are done again, in case
    the files have been replaced. The tile set that results does not depend on interruptions. Ray is joined only
    when the sources are in order and there is work to do.

    Raises InputError when the sources or the storage cannot be used, when the output holds tiles of another
    configuration, and when more than `max_unreadable` files cannot be read.
    """
    units, notes = _units(config)
    record = _record(config)
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    finished = _earlier(config, record, digest)
    if finished is not None:
        _check_replaced(finished, config)
        return IngestReport(finished, finished.header.skipped, finished.header.notes, True, 0, len(units))
    if config.slides:
        _check_resolutions([unit.slide for unit in units if unit.slide], config)
    write_json(join(config.output, RECORD_NAME), record, config.storage)
    rows_of = {unit.name: unit.slide for unit in units}
    parts: dict[str, Part] = {}
    seen: Sightings = {}
    with connected():
        meaning = find_set_meaning(units)
        units = [replace(unit, meaning=meaning) for unit in units]
        for part in _within_limit(units, config):
            parts[part.name] = part
            row = rows_of[part.name]
            if row and part.slide and part.slide.tiles:
                add_sighting(seen, part.slide.identity, row, config)
    ordered = [parts[unit.name] for unit in units]  # the order of completion is chance
    skipped = tuple(reason for part in ordered for reason in (*part.unreadable, *part.empty))
    rows = pa.concat_tables([part.rows for part in ordered])
    if not rows.num_rows:
        raise InputError(f"the sources gave no tile for {config.output}: {' '.join(skipped[:NAMED])}")
    notes = (*notes, *note_doubles(seen), *image_notes(ordered, meaning), *equal_content(rows))
    manifest = write_manifest(
        config.output,
        rows,
        tile_px=config.tile_px,
        mpp=_tile_mpp(config),
        ingest=digest,
        storage=config.storage,
        skipped=skipped,
        notes=notes,
        slides=join_regions(part.slide for part in ordered if part.slide),
    )
    reused = sum(part.reused for part in ordered)
    return IngestReport(manifest, skipped, notes, False, len(units) - reused, reused)


def _tile_mpp(config: IngestConfig) -> float:
    if config.slides:
        return config.slides.tile_mpp
    assert config.images is not None
    return config.images.mpp


def _units(config: IngestConfig) -> tuple[list[Unit], tuple[str, ...]]:
    """The pieces of work, in the order of their tiles, and what is to be said of the index.

    Raises InputError for a wrong index or pinned case.
    """
    if config.slides:
        listed = read_slide_index(config.slides, config.storage)
        slides = listed.rows
        check_pinned(config.split, (row.case for row in slides))
        # Names of slides may hold anything; the number keeps them apart and the rest is for those who look.
        names = [f"{number:05d}-{re.sub(r'[^A-Za-z0-9._-]', '_', row.name)}" for number, row in enumerate(slides)]
        return [Unit(name, config, slide=row) for name, row in zip(names, slides, strict=True)], listed.notes
    assert config.images is not None
    index = read_image_index(config.images, config.storage)
    images = index.rows
    check_pinned(config.split, (row.case for row in images))
    starts = range(0, len(images), config.rows_per_shard)
    units = [
        Unit(f"{number:05d}-images", config, images=tuple(images[start : start + config.rows_per_shard]))
        for number, start in enumerate(starts)
    ]
    return units, index.notes


def _within_limit(units: list[Unit], config: IngestConfig) -> Iterator[Part]:
    """The parts as they are done. Raises InputError once more files are unreadable than the limit allows."""
    unreadable: list[str] = []
    unit = "slides" if config.slides else "parts"
    for part in map_tasks(make_part, units, title="cutting tiles" if config.slides else "taking in images", unit=unit):
        unreadable += part.unreadable
        if len(unreadable) > config.max_unreadable:
            more = f" And {len(unreadable) - NAMED} more." if len(unreadable) > NAMED else ""
            raise InputError(
                f"{len(unreadable)} of the sources cannot be used and max_unreadable is {config.max_unreadable}; "
                "what is done stays, so correct them or raise the limit and repeat: "
                f"{' '.join(unreadable[:NAMED])}{more}"
            )
        yield part


def _check_resolutions(rows: list[SlideRow], config: IngestConfig) -> None:
    """Ask every slide for its resolution, and whether it is another's twin, before one ends the job hours later.

    Slides in object storage are asked when they are fetched. Unreadable ones are left to their part.
    """
    source = config.slides
    assert source is not None

    def check(row: SlideRow, source: SlideSource = source) -> str | None:
        try:
            with opened(row.uri, config.storage) as slide:
                scale_to(source.tile_mpp, slide_mpp(slide, row, source.slide_mpp), row.uri)
                return slide.properties.get("openslide.quickhash-1")
        except Unreadable:
            return None

    seen: Sightings = {}
    for row in rows:
        add_sighting(seen, row.uri, row, config)
    local = [row for row in rows if not is_s3(row.uri)]
    with ThreadPoolExecutor(OPENERS) as pool:
        found: Sightings = {}
        for row, identity in zip(local, pool.map(check, local), strict=True):
            if identity is not None:
                add_sighting(found, identity, row, config)


def _check_replaced(manifest: Manifest, config: IngestConfig) -> None:
    """Raise InputError when a slide of a finished set has been replaced: its tiles would be the old one's."""
    if manifest.header.slides is None:
        return
    records = list(read_slides(manifest, config.storage).values())
    with ThreadPoolExecutor(OPENERS) as pool:
        replaced = pool.map(lambda record: find_replaced(record, config.storage), records)
        for record, other in zip(records, replaced, strict=True):
            if other:
                raise InputError(
                    f"slide {record.source} has been replaced since {config.output} was cut from it; name another "
                    "output, or put the old slide back."
                )


def _record(config: IngestConfig) -> dict[str, Any]:
    """What decides the tiles: the configuration, and the contents of the index that it names."""
    source = config.slides or config.images
    index = source.index if source else None
    content = hashlib.sha256(read_bytes(index, config.storage)).hexdigest() if index else None
    return {**config.model_dump(mode="json", exclude=NOT_CONTENT), "sha256 of the index": content}


def _earlier(config: IngestConfig, record: dict[str, Any], digest: str) -> Manifest | None:
    """The finished tile set at the output, or None when it is still to be made.

    Raises InputError when the output belongs to another configuration.
    """
    other = f"{config.output} holds tiles of another configuration"
    try:
        earlier = read_json(join(config.output, RECORD_NAME), config.storage)
    except FileNotFoundError:
        earlier = None
    if earlier is not None and earlier != record:
        before, now = dict(_leaves(earlier)), dict(_leaves(record))
        key = next(key for key in [*now, *before] if before.get(key) != now.get(key))
        raise InputError(
            f"{other} ({key} was {before.get(key, 'unset')!r} and is {now.get(key)!r}); name another output or empty "
            "this one."
        )
    if not exists(join(config.output, HEADER_NAME), config.storage):
        return None
    manifest = read_manifest(config.output, config.storage)
    if manifest.header.ingest != digest:
        raise InputError(f"{other}; name another output or empty this one.")
    return manifest


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield prefix + key, item
