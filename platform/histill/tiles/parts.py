"""The parts of an ingest: each is one task, finished once the record of its rows exists."""

import io
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from histill.config.ingest_tiles import IngestConfig
from histill.errors import InputError
from histill.storage.control import read_bytes, write_bytes
from histill.storage.records import Record, parse_record, record_bytes
from histill.storage.tables import write_table
from histill.storage.uris import join
from histill.tiles.annotations import explain_outside, read_annotations, use_annotations
from histill.tiles.bands import cut_bands, divide_slide
from histill.tiles.color_profile import describe_profile
from histill.tiles.empty_slides import explain_empty
from histill.tiles.image_index import ImageRow
from histill.tiles.images import read_images
from histill.tiles.part_shards import PartShards, place_squares, write_shards
from histill.tiles.schema import manifest_schema
from histill.tiles.shards import Tile
from histill.tiles.slide_records import (
    SlideRecord,
    find_origin,
    find_replaced,
    find_replaced_annotations,
    record_slide,
)
from histill.tiles.slides import SlideRow, open_slide
from histill.tiles.sources import Unreadable
from histill.tiles.thumbnail import draw_thumbnail
from histill.tiles.tiling import cut_squares, lay_out

NOTE_KEY = b"histill.part"  # Parquet metadata of a part's record, in JSON, so that the record is one file

THUMBNAILS = "thumbnails"  # folder in the tile set


@dataclass(frozen=True)
class Unit:
    """One piece of work: a slide (or region), or a run of images."""

    name: str
    config: IngestConfig
    ingest: str  # digest of the configuration, which its record must have
    slide: SlideRow | None = None
    images: tuple[ImageRow, ...] = ()
    there: Mapping[str, int] = field(default_factory=dict)  # sizes in bytes of its existing shards, by name
    meaning: Mapping[int, int] | None = None  # the class of each mask value


@dataclass(frozen=True)
class Part:
    """The result of a unit: its rows of the manifest, and a sentence for each source without any."""

    name: str
    rows: pa.Table
    unreadable: tuple[str, ...]
    empty: tuple[str, ...]
    shards: Mapping[str, int]  # sizes in bytes, by name
    slide: SlideRecord | None = None  # None: the slide could not be read
    done: Mapping[str, tuple[int, str]] = field(default_factory=dict)  # conversions: number of images, and the first
    class_pixels: Mapping[int, int] = field(default_factory=dict)  # pixels of each class in the masks
    reused: bool = False


class PartNote(Record):
    """The metadata in the record of a part, next to its rows."""

    noun: ClassVar[str] = "the record of a part of an ingest"
    remedy: ClassVar[str] = "remove it, and the part is made again"

    ingest: str = Field(description="digest of the configuration")
    shards: dict[str, int]
    unreadable: tuple[str, ...]
    empty: tuple[str, ...]
    slide: SlideRecord | None
    done: dict[str, tuple[int, str]]
    class_pixels: tuple[tuple[int, int], ...]
    meaning: tuple[tuple[int, int], ...] | None


@dataclass
class _Found:
    unreadable: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    slide: SlideRecord | None = None
    done: dict[str, tuple[int, str]] = field(default_factory=dict)


def make_part(unit: Unit, threads: int = 1, spread: bool = False) -> Part:
    """Write the unit's shards and then its record, unless an earlier run did; runs as a task on the cluster.

    A slide is cut by a number of threads, or with `spread` by tasks of as many CPUs, which does not change the result.

    A part is made again if it has unreadable sources, since they may have been replaced, if its slide or its
    annotations have been replaced, if its masks were read with another meaning, or if shards are missing.

    Raises InputError when the storage refuses or a slide's resolution or annotated classes cannot be used.
    """
    earlier = _recorded(unit)
    if earlier is not None and not earlier.unreadable and not _is_outdated(earlier, unit):
        return earlier
    found = _Found()
    if unit.slide:
        written = _cut_slide(unit, found, threads, spread)
    else:
        written = write_shards(_image_tiles(unit, found), unit.config, unit.name)
    part = Part(
        unit.name,
        written.rows,
        tuple(found.unreadable),
        tuple(found.empty),
        written.sizes,
        found.slide,
        found.done,
        written.class_pixels,
    )
    note = PartNote(
        ingest=unit.ingest,
        shards=written.sizes,
        unreadable=part.unreadable,
        empty=part.empty,
        slide=part.slide,
        done=found.done,
        class_pixels=tuple(sorted(part.class_pixels.items())),
        meaning=_pairs(unit.meaning),
    )
    marked = written.rows.replace_schema_metadata({NOTE_KEY: record_bytes(note)})
    write_table(_record_uri(unit), [marked], marked.schema, unit.config.storage, compression="zstd")
    return part


def _record_uri(unit: Unit) -> str:
    return join(unit.config.output, "parts", f"{unit.name}.parquet")


def _recorded(unit: Unit) -> Part | None:
    uri = _record_uri(unit)
    try:
        data = read_bytes(uri, unit.config.storage)
    except FileNotFoundError:
        return None
    try:
        table = pq.read_table(io.BytesIO(data))
        note = parse_record(PartNote, (table.schema.metadata or {})[NOTE_KEY], uri)
    except (pa.ArrowInvalid, OSError, KeyError, InputError):
        return None
    # of sources in another place, or with other masks
    if note.ingest != unit.ingest or note.meaning != _pairs(unit.meaning):
        return None
    return Part(
        unit.name,
        table.replace_schema_metadata(None).cast(manifest_schema(unit.config.keep_columns)),
        note.unreadable,
        note.empty,
        note.shards,
        note.slide,
        note.done,
        dict(note.class_pixels),
        reused=True,
    )


def _pairs(meaning: Mapping[int, int] | None) -> tuple[tuple[int, int], ...] | None:
    """`meaning` as stored in the record of a part."""
    return None if meaning is None else tuple(sorted(meaning.items()))


def _is_outdated(part: Part, unit: Unit) -> bool:
    """Whether a shard of the part is missing, or its slide or annotations have been replaced since."""
    if not part.shards.items() <= unit.there.items():
        return True
    storage = unit.config.storage
    return part.slide is not None and (
        find_replaced(part.slide, storage) or find_replaced_annotations(part.slide, storage) is not None
    )


def _cut_slide(unit: Unit, found: _Found, threads: int, spread: bool) -> PartShards:
    config, row = unit.config, unit.slide
    assert row is not None
    assert config.slides is not None
    rules, annotations = config.slides.annotations, None
    try:
        file = None if row.annotations is None else read_annotations(row.annotations, config.storage)
        with open_slide(row.uri, config.storage) as slide:
            icc = describe_profile(slide, row.uri, config.slides)
            layout = lay_out(slide, row, config.slides, config.tile_px, threads)
            squares = layout.kept(config.slides.min_tissue)
            tissue = squares
            if file is not None:
                annotations = use_annotations(file, rules, find_origin(slide))
                squares = tissue.inside(annotations)
            if not config.slides.is_cut:
                shards = place_squares(row, squares, config, unit.name)
            elif spread and len(squares.corners) > config.rows_per_shard:
                shards = cut_bands(divide_slide(unit.name, row, squares, config, threads, annotations))
            else:
                cut = cut_squares(slide, row, squares, config.slides, config.tile_px, threads, annotations)
                with closing(cut) as tiles:
                    shards = write_shards(tiles, config, unit.name)
            read = {} if file is None else {file.uri: file.sha256}
            tiles_cut = shards.rows.num_rows
            found.slide = record_slide(slide, row, layout, tiles_cut, config.storage, annotations=read, icc=icc)
            if not shards.rows.num_rows:
                found.empty.append(
                    explain_outside(row.uri, file, rules)
                    if file is not None and tissue.corners
                    else explain_empty(row, slide.dimensions, layout, config.slides, config.tile_px)
                )
    except Unreadable as reason:  # a partly readable slide is not used
        found.unreadable.append(str(reason))
        return PartShards.join([], config.keep_columns)
    picture = draw_thumbnail(row, layout, squares)
    write_bytes(join(config.output, THUMBNAILS, f"{unit.name.rpartition('/')[2]}.png"), picture, config.storage)
    return shards


def _image_tiles(unit: Unit, found: _Found) -> Iterator[Tile]:
    config = unit.config
    assert config.images is not None
    for result in read_images(unit.images, config.tile_px, config.images.mpp, config.storage, unit.meaning):
        if isinstance(result, Unreadable):
            found.unreadable.append(str(result))
            continue
        for what in result.notes:
            count, first = found.done.get(what, (0, result.tile_id))
            found.done[what] = count + 1, first
        yield result
