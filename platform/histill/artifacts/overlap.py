"""Find held-out tiles that a model was trained on: by case name, by image bytes and by slide.

A tile is recognized by the bytes of its image, whatever its mask, label and case name. A tile that was re-encoded,
cut at another position or resized has other bytes; it is recognized by its slide's identity, if both tile sets were cut
from slides. Overlap of neither kind is not detected.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histill.artifacts.lineage import tile_sets
from histill.artifacts.model_folder import ModelCard, TaughtOn
from histill.config.common import Storage
from histill.config.runs import Data
from histill.errors import InputError
from histill.storage.control import list_folders
from histill.storage.records import read_record
from histill.storage.uris import join
from histill.tiles.manifest import HEADER_NAME, Header, Manifest, digest_case
from histill.tiles.manifest_file import read_manifest
from histill.tiles.slide_records import read_slides

_COMPARED = ("case", "slide", "split", "content")
_IMAGE_DIGITS = 32  # of a tile's content hash; the mask's digits follow
_MOST_SIBLINGS = 200  # maximum number of neighboring folders searched for a tile set


@dataclass(frozen=True)
class SeenTiles:
    """How much of a held-out split a model has seen."""

    cases: int = 0  # cases with a name, a tile or a slide that was seen
    tiles: int = 0  # tiles whose image was seen
    divided: tuple[str, ...] = ()  # slides with regions of other cases, declared to be other patients', that were seen
    unknown: tuple[str, ...] = ()  # sources that could not be compared, each the rest of a sentence


def find_seen(card: ModelCard, held_out: Manifest, split: str, storage: Storage) -> SeenTiles:
    """What the model of `card` has seen of a split, in training or validation, its own or its ancestors'.

    A slide that is in two splits of one tile set is not seen through the other one's regions: the ingest refuses that
    unless `slides.split_within_slide` declares them to be of different patients.
    """
    rows = held_out.read(_COMPARED, np.asarray(held_out.rows.find("split", {split})))
    taught = frozenset((*card.train_cases, *card.val_cases))
    seen = set(rows["case"].filter(_of_cases(rows, taught)).unique().to_pylist())
    if not card.val_cases and card.tiles_digest == held_out.header.digest and split == Data.model_fields["val"].default:
        seen |= set(rows["case"].unique().to_pylist())  # an older card does not record its validation cases
    unknown = list(card.unknown_teachers)
    images, regions, divided = _images_of(rows), _regions(rows, held_out, storage), set[str]()
    same = pa.repeat(pa.scalar(False), rows.num_rows)
    for tiles in tile_sets(card):
        manifest = held_out if tiles.digest == held_out.header.digest else find_tile_set(tiles, held_out.uri, storage)
        if manifest is None:
            place = f" at {tiles.uri}" if tiles.uri else ""
            unknown.append(f"tile set {tiles.digest[:12]}, which is no longer{place} nor beside the held-out tiles")
            continue
        cases = manifest.rows.coded["case"].values.to_pylist()
        learned = manifest.rows.find("case", {case for case in cases if digest_case(case) in taught})
        identities: set[str] = set()
        for piece in learned.pieces():
            part = manifest.read(_COMPARED, piece)
            same = pc.or_(same, pc.is_in(images, _images_of(part)))
            if manifest is held_out:
                here = pc.equal(part["split"], split)
                others = {region.identity for region in _regions(part.filter(pc.invert(here)), manifest, storage)}
                divided |= {region.slide for region in regions if region.identity in others}
                part = part.filter(here)
            identities |= {region.identity for region in _regions(part, manifest, storage)}
        seen |= {region.case for region in regions if region.identity in identities}
    seen |= set(rows["case"].filter(same).unique().to_pylist())
    return SeenTiles(len(seen), pc.sum(same).as_py() or 0, tuple(sorted(divided)), tuple(unknown))


def _images_of(rows: pa.Table) -> pa.Array:
    """The image digest of each tile."""
    return pc.utf8_slice_codeunits(rows["content"].combine_chunks(), 0, _IMAGE_DIGITS)


def _of_cases(rows: pa.Table, digests: frozenset[str]) -> pa.ChunkedArray:
    """Mask of the rows whose case has one of the `digests`, bool [rows]."""
    names = [name for name in rows["case"].unique().to_pylist() if digest_case(name) in digests]
    return pc.is_in(rows["case"], pa.array(names, pa.string()))


class _Region(NamedTuple):
    """A case of a slide; `identity` is the same under all names of the slide."""

    identity: str
    slide: str
    case: str


def _regions(rows: pa.Table, manifest: Manifest, storage: Storage) -> list[_Region]:
    """The slides and cases of the rows; empty for a tile set that was not cut from slides."""
    if manifest.header.slides is None or not rows.num_rows:
        return []
    records = read_slides(manifest, storage)
    pairs = rows.select(["slide", "case"]).group_by(["slide", "case"]).aggregate([]).to_pylist()
    return [_Region(records[pair["slide"]].identity, pair["slide"], pair["case"]) for pair in pairs]


def find_tile_set(tiles: TaughtOn, beside: str, storage: Storage) -> Manifest | None:
    """Find the manifest of a tile set: at its recorded URI, else next to that or next to the tile set `beside`."""
    for uri in _places(tiles, beside, storage):
        try:
            header = read_record(Header, join(uri, HEADER_NAME), storage)  # other folders may have a manifest.json too
            if header.digest == tiles.digest:
                return read_manifest(uri, storage)
        except (FileNotFoundError, InputError):
            continue
    return None


def _places(tiles: TaughtOn, beside: str, storage: Storage) -> Iterator[str]:
    if tiles.uri is not None:
        yield tiles.uri
    for uri in filter(None, (tiles.uri, beside)):
        try:
            yield from list_folders(uri.rstrip("/").rpartition("/")[0], storage)[:_MOST_SIBLINGS]
        except InputError:  # no permission to list the parent
            continue
