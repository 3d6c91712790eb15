"""Ingest slides or images into a tile set, in parts, so that an interrupted ingest resumes where it was."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from histill.cluster.connect import connect_cluster, has_cluster, works_here
from histill.cluster.metrics import Job, name_job
from histill.cluster.parallel import Share, map_tasks, share_cpus
from histill.cluster.sharded import ShardedFolder, run_sharded
from histill.config.ingest_tiles import IngestConfig, SlideSource
from histill.errors import InputError
from histill.storage.control import exists
from histill.storage.scratch import scratch_folder
from histill.storage.uris import is_remote, join
from histill.tiles.annotation_survey import survey_annotations
from histill.tiles.claim import Claim, claim_of
from histill.tiles.duplicate_slides import Sightings, add_sighting, note_doubles
from histill.tiles.finished import add_shard_sizes, find_finished
from histill.tiles.image_index import read_image_index
from histill.tiles.manifest import HEADER_NAME, Manifest
from histill.tiles.manifest_file import write_rows
from histill.tiles.mask_survey import find_set_meaning, forget_survey
from histill.tiles.parts import Part, Unit, make_part
from histill.tiles.remedies import list_remedies
from histill.tiles.row_store import RowStore
from histill.tiles.slide_files import OPENERS, check_existence, peek_slide
from histill.tiles.slide_index import read_slide_index
from histill.tiles.slide_records import join_regions
from histill.tiles.slides import SlideRow, resolve_scale
from histill.tiles.sources import Unreadable
from histill.tiles.splits import check_pinned
from histill.tiles.summary import describe_images, describe_mpp, describe_profiles, find_equal_tiles

NAMED = 5  # unreadable files that an error lists


@dataclass(frozen=True)
class IngestReport:
    """The result of an ingest.

    `skipped` holds a sentence for each slide or image without a tile, `notes` one for everything else that a user
    should know about the sources; both are in the header as well.
    """

    manifest: Manifest
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    reused: bool
    parts_done: int
    parts_reused: int

    @property
    def uri(self) -> str:
        """Where the tile set is; keys of other jobs take the report itself in its place."""
        return self.manifest.uri


def ingest(config: IngestConfig) -> IngestReport:
    """Make the tile set that `config` describes, or resume it; a finished one with all its shards is only read.

    The work is divided into parts (a slide, or `rows_per_shard` images), each marked as done when its shards are
    written. Repeating an ingest makes the parts that are missing or whose shards are lost. Parts with unreadable files
    are made again, in case the files have been replaced. The resulting tile set does not depend on interruptions. Ray
    is connected only once the sources have been checked and there is work to do.

    Raises InputError when the sources or the storage cannot be used, when the output holds tiles of another
    configuration, and when more than `max_unreadable` files cannot be read.
    """
    claim = claim_of(config)
    units, notes = _units(config, claim)
    begun = claim.look()
    if (finished := find_finished(claim, begun=begun)) is not None:
        return IngestReport(finished, finished.header.skipped, finished.header.notes, True, 0, len(units))
    if config.slides:
        if not begun:  # finished parts need their slides no longer
            found = [unit.slide.uri for unit in units if unit.slide]
            here = works_here(in_process=_is_local(config))
            check_existence(found, config.storage, here=here, allowed=config.max_unreadable)
        _check_resolutions([unit.slide for unit in units if unit.slide], config, remote=not begun)
    claim.take()
    try:
        return _make(claim, config, units, notes)
    except Exception:
        with contextlib.suppress(InputError):  # if the storage is unreachable, the original error says more
            if not exists(join(config.output, HEADER_NAME), config.storage):
                claim.give_up()
        raise


def _make(claim: Claim, config: IngestConfig, units: list[Unit], notes: tuple[str, ...]) -> IngestReport:
    """Make the missing parts, and assemble the tile set."""
    with scratch_folder() as folder:  # the rows of all tiles may be more than the memory
        return _make_within(RowStore(folder), claim, config, units, notes)


def _make_within(
    rows: RowStore, claim: Claim, config: IngestConfig, units: list[Unit], notes: tuple[str, ...]
) -> IngestReport:
    here, cut = _is_local(config), config.slides is None or config.slides.is_cut
    with connect_cluster(in_process=here), name_job(Job("ingest_tiles", config.output)):
        share = share_cpus(len(units), config.workers.count, here=here)
        meaning = find_set_meaning(units, share.threads)
        surveyed = survey_annotations(units, share.threads)
        _check_unreadable(surveyed.unreadable, config)
        units = [replace(unit, meaning=meaning) for unit in add_shard_sizes(units, claim)]
        title, unit = _name_work(config.slides)
        laid_aside = map(rows.put, _checked_parts(units, config, share))
        found = run_sharded(laid_aside, len(units), title=title, unit=unit)
    parts = {part.name: part for part in found}
    ordered = [parts[unit.name] for unit in units]  # parts complete in any order
    skipped = tuple(reason for part in ordered for reason in (*part.unreadable, *part.empty))
    if not rows.tiles:
        raise InputError(f"the sources gave no tile for {config.output}: {_first_of(skipped)}", code="no-tiles")
    described = *describe_images(ordered, meaning), *describe_mpp(ordered, config.slides), *describe_profiles(ordered)
    notes = (*notes, *surveyed.notes, *note_doubles(_sightings(units, ordered, config)), *described)
    claim.take()  # still ours, unless another ingest of the same configuration has failed
    manifest = write_rows(
        config.output,
        map(rows.read, ordered),
        tile_px=config.tile_px,
        mpp=_tile_mpp(config),
        ingest=claim.digest,
        storage=config.storage,
        skipped=skipped,
        notes=notes,
        describe=find_equal_tiles if cut else lambda _: (),
        slides=join_regions(part.slide for part in ordered if part.slide),
        cut=cut,
        kept=config.keep_columns,
        icc=config.slides.icc if config.slides else None,
    )
    folder = ShardedFolder(config.output, HEADER_NAME, config.storage)
    header = folder.finish(manifest.header, manifest.shards() if cut else (), index_as=manifest.header.digest)
    reused = sum(part.reused for part in ordered)
    return IngestReport(replace(manifest, header=header), skipped, header.notes, False, len(units) - reused, reused)


def _name_work(slides: SlideSource | None) -> tuple[str, str]:
    """What progress is shown of, and in which unit."""
    if slides is None:
        return "ingesting images", "parts"
    return ("cutting tiles" if slides.is_cut else "finding tissue"), "slides"


def _is_local(config: IngestConfig) -> bool:
    """Whether this process does the work: if it was told to, or there is no cluster, which takes long to start."""
    return config.workers.in_process or not has_cluster()


def _tile_mpp(config: IngestConfig) -> float:
    if config.slides:
        return config.slides.tile_mpp
    assert config.images is not None
    return config.images.mpp


def _units(config: IngestConfig, claim: Claim) -> tuple[list[Unit], tuple[str, ...]]:
    """The units of work, in the order of their tiles, and the notes on the index.

    Raises InputError for a wrong index or pinned case.
    """
    if config.slides:
        listed = read_slide_index(config.slides, config.storage, config.keep_columns)
        slides = listed.rows
        check_pinned(config.split, (row.case for row in slides))
        # Slide names may hold any character; the number makes them unique and the rest is for readers.
        names = [
            f"{claim.stamp}/{number:05d}-{re.sub(r'[^A-Za-z0-9._-]', '_', row.name)}"
            for number, row in enumerate(slides)
        ]
        return [
            Unit(name, config, claim.digest, slide=row) for name, row in zip(names, slides, strict=True)
        ], listed.notes
    assert config.images is not None
    index = read_image_index(config.images, config.storage, config.keep_columns)
    images = index.rows
    check_pinned(config.split, (row.case for row in images))
    starts = range(0, len(images), config.rows_per_shard)
    units = [
        Unit(
            f"{claim.stamp}/{number:05d}-images",
            config,
            claim.digest,
            images=tuple(images[start : start + config.rows_per_shard]),
        )
        for number, start in enumerate(starts)
    ]
    return units, index.notes


def _sightings(units: Iterable[Unit], parts: Iterable[Part], config: IngestConfig) -> Sightings:
    """The slides that have tiles, in the order of the units."""
    seen: Sightings = {}
    for unit, part in zip(units, parts, strict=True):
        if unit.slide and part.slide and part.slide.tiles:
            add_sighting(seen, part.slide.identity, unit.slide, config)
    return seen


def _checked_parts(units: list[Unit], config: IngestConfig, share: Share) -> Iterator[Part]:
    """Yield the parts as they complete.

    Raises InputError once more files are unreadable than the limit allows, or a slide would be in two splits.
    """
    seen: Sightings = {}
    unreadable: list[str] = []
    by_name = {unit.name: unit for unit in units}
    make = partial(make_part, threads=share.cpus, spread=share.spread)
    for part in map_tasks(make, units, cpus=share.cpus, at_once=config.workers.count, threads=share.threads):
        unit = by_name[part.name]
        unreadable += part.unreadable
        if part.unreadable and unit.meaning is not None:  # its files are going to be replaced
            forget_survey(unit)
        _check_unreadable(unreadable, config)
        if unit.slide and part.slide and part.slide.tiles:
            add_sighting(seen, part.slide.identity, unit.slide, config)
        yield part


def _check_unreadable(unreadable: Sequence[str], config: IngestConfig) -> None:
    """Raise InputError when more sources are unreadable than the limit allows."""
    if len(unreadable) > config.max_unreadable:
        raise InputError(
            f"{_count_unreadable(unreadable, config)}; {list_remedies(config.slides).unreadable}: "
            f"{_first_of(unreadable)}",
            code="too-many-unreadable",
        )


def _count_unreadable(unreadable: Sequence[str], config: IngestConfig) -> str:
    counted = f"{len(unreadable)} of the sources cannot be used"
    asked = config.slides is None or not config.slides.is_of_prediction
    return f"{counted} and max_unreadable is {config.max_unreadable}" if asked else counted


def _first_of(reasons: Sequence[str]) -> str:
    more = f" And {len(reasons) - NAMED} more." if len(reasons) > NAMED else ""
    return " ".join(reasons[:NAMED]) + more


def _check_resolutions(rows: list[SlideRow], config: IngestConfig, *, remote: bool) -> None:
    """Check the resolution of every slide, and find duplicates, before one of them ends the job hours later.

    Those in object storage are looked at if `remote`, as far as some of their bytes tell (`peek_slide`); others are
    checked when they are fetched. Unreadable ones are reported by their part.
    """
    source = config.slides
    assert source is not None

    def check(row: SlideRow, source: SlideSource = source) -> str | None:
        try:
            with peek_slide(row.uri, config.storage) as slide:
                if slide is None:
                    return None
                resolve_scale(slide, row, source)
                return slide.properties.get("openslide.quickhash-1")
        except Unreadable:
            return None

    seen: Sightings = {}
    for row in rows:
        add_sighting(seen, row.uri, row, config)
    slides = {row.uri: row for row in reversed(rows) if remote or not is_remote(row.uri)}
    with ThreadPoolExecutor(OPENERS) as pool:
        identities = dict(zip(slides, pool.map(check, slides.values()), strict=True))
    found: Sightings = {}
    for row in rows:
        if (identity := identities.get(row.uri)) is not None:
            add_sighting(found, identity, row, config)
