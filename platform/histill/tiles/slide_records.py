"""The record of each slide of a tile set: its identity, and where its tiles lie on it."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from histill.config.common import Storage
from histill.errors import InputError, UnavailableError
from histill.storage.control import json_value, read_bytes, write_bytes
from histill.storage.records import Record, parse_records
from histill.storage.uris import is_remote, join
from histill.tiles.color_profile import Profiled
from histill.tiles.resolution import resolve_mpp
from histill.tiles.slide_files import open_slide
from histill.tiles.slide_identity import fingerprint_source, identify_slide
from histill.tiles.slide_index import SlideRow
from histill.tiles.slide_parts import consists_of_several
from histill.tiles.sources import Unreadable, read_file

if TYPE_CHECKING:
    from openslide import OpenSlide

    from histill.tiles.manifest import Manifest
    from histill.tiles.tiling import Layout

RECORDS_NAME = "slides.json"


class SlideRecord(Record):
    """One slide as it was cut. Pixels are those of level 0, counted from its top left corner."""

    noun: ClassVar[str] = "the record of a tile set's slides"
    remedy: ClassVar[str] = "ingest the slides again"

    name: str = Field(description="as in the column `slide` of the manifest")
    cases: tuple[str, ...] = Field(description="one, or those of its regions")
    source: str = Field(description="path or URI of the file")
    identity: str = Field(description="the same for every copy and every file of one slide, see `identify_slide`")
    fingerprint: str = Field(description="size and time of the file, or ETag of the object; cheap to check again")
    mpp: float = Field(description="microns per pixel of level 0")
    width: int
    height: int
    origin: tuple[int, int] = Field(description="x, y of the scanned area (OpenSlide's bounds), else 0, 0")
    tile_side: float = Field(description="side of a tile in pixels of level 0; may be fractional")
    tiles: int = Field(description="number of its tiles; may be 0")
    tissue: float = Field(description="share of the slide that is tissue, 0 to 1")
    annotations: dict[str, str] = Field({}, description="SHA-256 of the files of annotations by path or URI")
    icc: Profiled | None = Field(
        None, description="srgb: its tiles were converted by its color profile; none: it has none; null: not asked for"
    )


def find_origin(slide: "OpenSlide") -> tuple[int, int]:
    """x, y of the corner of the scanned area (OpenSlide's bounds) in level-0 pixels, else 0, 0."""
    left, top = (int(slide.properties.get(f"openslide.bounds-{axis}", 0)) for axis in "xy")
    return left, top


def record_slide(
    slide: "OpenSlide",
    row: SlideRow,
    layout: "Layout",
    tiles: int,
    storage: Storage,
    *,
    annotations: Mapping[str, str] | None = None,
    icc: Profiled | None = None,
) -> SlideRecord:
    """The record of an open slide, or of a region, from which `tiles` tiles were cut."""
    width, height = slide.dimensions
    return SlideRecord(
        name=row.name,
        cases=(row.case,),
        source=row.uri,
        identity=identify_slide(slide, row.uri, storage),
        fingerprint=fingerprint_source(row.uri, storage),
        mpp=layout.level0_mpp,
        width=width,
        height=height,
        origin=find_origin(slide),
        tile_side=layout.side,
        tiles=tiles,
        tissue=float(layout.tissue.mean()),
        annotations=dict(annotations or {}),
        icc=icc,
    )


def join_regions(records: Iterable[SlideRecord]) -> tuple[SlideRecord, ...]:
    """Merge the records of regions into one for each slide, in order of first appearance."""
    slides: dict[str, SlideRecord] = {}
    for record in records:
        earlier = slides.get(record.name)
        if earlier is not None:
            cases = tuple(dict.fromkeys((*earlier.cases, *record.cases)))
            record = earlier.model_copy(
                update={
                    "cases": cases,
                    "tiles": earlier.tiles + record.tiles,
                    "annotations": earlier.annotations | record.annotations,
                }
            )
        slides[record.name] = record
    return tuple(slides.values())


def find_replaced(record: SlideRecord, storage: Storage) -> bool:
    """Whether the slide has been replaced by another one, or by itself with other metadata; a missing one has not been.

    An object with another ETag is another slide, and so is a file of another size. Otherwise, and for slides of several
    files, identity, resolution and extent are compared, since copying a file changes its time, and files of more slides
    may be added to a DICOM folder.
    """
    try:
        now = fingerprint_source(record.source, storage)
    except UnavailableError:
        raise
    except (FileNotFoundError, InputError):  # without the right to list a bucket, a missing object is denied
        return False
    if now == record.fingerprint:
        return False
    sizes = {fingerprint.partition("-")[0] for fingerprint in (now, record.fingerprint)}
    if not consists_of_several(record.source) and (is_remote(record.source) or len(sizes) > 1):
        return True
    try:
        with open_slide(record.source, storage) as slide:
            mpp = resolve_mpp(slide, SlideRow(record.source, record.cases[0]), record.mpp)
            identity = identify_slide(slide, record.source, storage)
            found = (identity, mpp, *slide.dimensions)
    except InputError:
        return True
    return found != (record.identity, record.mpp, record.width, record.height)


def find_replaced_annotations(record: SlideRecord, storage: Storage) -> str | None:
    """A file of annotations whose content has changed since the slide was cut; a missing one has not."""
    for uri, digest in record.annotations.items():
        with contextlib.suppress(Unreadable):
            if hashlib.sha256(read_file(uri, storage)).hexdigest() != digest:
                return uri
    return None


def write_slides(uri: str, records: Iterable[SlideRecord], storage: Storage) -> str:
    """Write the records next to the manifest of the tile set `uri`; return the SHA-256 of the file, for the header."""
    values = [json_value(record.model_dump(mode="json", exclude_defaults=True)) for record in records]
    data = f"{json.dumps(values, indent=1, sort_keys=True)}\n".encode()
    write_bytes(join(uri, RECORDS_NAME), data, storage)
    return hashlib.sha256(data).hexdigest()


def read_slides(manifest: "Manifest", storage: Storage) -> Mapping[str, SlideRecord]:
    """Read the record of each slide by name, in the order of the manifest.

    Raises InputError when the set has none (it was made of images, or by an earlier version), and when the file is
    missing or not the one that the header names.
    """
    uri = join(manifest.uri, RECORDS_NAME)
    if manifest.header.slides is None:
        raise InputError(
            f"{manifest.uri} has no record of its slides (it was cut by an earlier version, or is made of images); "
            "ingest the slides again into another folder.",
            code="other-version",
        )
    try:
        data = read_bytes(uri, storage)
    except FileNotFoundError:
        raise InputError(f"{uri} is missing; ingest the slides again.", code="tiles-damaged") from None
    if hashlib.sha256(data).hexdigest() != manifest.header.slides:
        raise InputError(
            f"{uri} does not match the digest in the tile set's header: it was cut short or overwritten; ingest the "
            "slides again.",
            code="tiles-damaged",
        )
    return {record.name: record for record in parse_records(SlideRecord, data, uri)}
