"""Draw the heatmaps of a tile set's slides from its predictions, as tasks on the cluster."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histill.artifacts.model_folder import ModelCard
from histill.config.common import Storage
from histill.errors import InputError
from histill.predict.file_names import name_files
from histill.predict.geojson import heatmap_geojson
from histill.predict.heatmap import heatmap_png
from histill.predict.record import HEADER_NAME
from histill.predict.shard import PredictionJob
from histill.predict.slide_map import SlideMap
from histill.storage.control import measure_files, write_bytes
from histill.storage.tables import read_columns
from histill.storage.uris import folder_name, join
from histill.tiles.manifest import Manifest
from histill.tiles.slide_records import SlideRecord, read_slides

SLIDES_NAME, HEATMAPS = "slides.csv", "heatmaps"
_ENDINGS = (".png", ".geojson")


@dataclass(frozen=True)
class Drawing:
    """A slide to draw. Small, because it is sent to a task."""

    slide: str
    file: str  # base name of its files, without extension
    shards: tuple[str, ...]  # shards with tiles of it
    record: SlideRecord | None  # None: the set has no slide records
    uri: str  # folder of the predictions
    classes: tuple[str, ...]
    segmenter: bool
    tile_px: int
    storage: Storage


def plan_drawings(job: PredictionJob, manifest: Manifest, card: ModelCard) -> list[Drawing]:
    """The slides that can be drawn, ascending. In a set without slide records these are the slides with several tiles:
    the others are single images.

    Raises InputError when the slide records do not belong to the set.
    """
    storage, split = job.config.storage, job.config.split
    records = read_slides(manifest, storage) if manifest.header.slides is not None else {}
    shards = _find_shards(manifest, split, alone=bool(records))
    files, segmenter = name_files(shards), card.outputs.dense
    return [
        Drawing(
            slide=slide,
            file=files[slide],
            shards=shards[slide],
            record=records.get(slide),
            uri=job.uri,
            classes=card.outputs.scored,
            segmenter=segmenter,
            tile_px=manifest.header.tile_px,
            storage=storage,
        )
        for slide in shards
    ]


def find_undrawn(drawings: Sequence[Drawing]) -> list[Drawing]:
    """The drawings with a missing file."""
    if not drawings:
        return []
    names = [each.file + ending for each in drawings for ending in _ENDINGS]
    there = measure_files(join(drawings[0].uri, HEATMAPS), names, drawings[0].storage)
    return [each for each in drawings if not all(each.file + ending in there for ending in _ENDINGS)]


def warn_of_unrecorded(drawings: Sequence[Drawing], tiles: str) -> None:
    """Warn about slides of the set `tiles` without a record of a tile's size on the slide."""
    unknown = [drawing for drawing in drawings if drawing.record is None]
    if unknown:
        print(
            f"warning: {tiles} has no record of {len(unknown)} of its slides; their heatmaps assume that a tile is "
            f"{unknown[0].tile_px} px of level 0, which is wrong if it was cut at another resolution than the slide's "
            "own; ingest the slides again for correctly placed squares.",
            file=sys.stderr,
        )


def _find_shards(manifest: Manifest, split: str | None, *, alone: bool) -> dict[str, tuple[str, ...]]:
    """The shards with tiles of each slide of `split` (None: all); slides with a single tile only if `alone`."""
    table = manifest.table.select(["slide", "shard"])
    if split is not None:
        table = table.take(pa.array(manifest.rows_of(split)))
    shards: dict[str, list[str]] = {}
    tiles: Counter[str] = Counter()
    for row in table.group_by(["slide", "shard"], use_threads=False).aggregate([([], "count_all")]).to_pylist():
        shards.setdefault(row["slide"], []).append(row["shard"])
        tiles[row["slide"]] += row["count_all"]
    return {slide: tuple(found) for slide, found in sorted(shards.items()) if alone or tiles[slide] > 1}


def draw_slide(drawing: Drawing) -> bool:
    """Write the slide's heatmap as PNG and GeoJSON; False if no tile could be decoded."""
    found = read_slide_map(drawing)
    if found is None:
        return False
    target = join(drawing.uri, HEATMAPS, drawing.file)
    for ending, made in zip(_ENDINGS, (heatmap_png(found), heatmap_geojson(found)), strict=True):
        write_bytes(target + ending, made, drawing.storage)
    return True


def read_slide_map(drawing: Drawing) -> SlideMap | None:
    """Read the predictions of a slide, placed by its record; None if no tile could be decoded.

    Raises InputError when some of them are missing.
    """
    table = pa.concat_tables([_read_predictions(shard, drawing) for shard in drawing.shards])
    table = table.filter(pc.and_(pc.equal(table["slide"], drawing.slide), pc.is_valid(table["class"])))
    if not table.num_rows:
        return None
    record = drawing.record
    return SlideMap(
        slide=drawing.slide,
        classes=drawing.classes,
        x=table["x"].to_numpy().astype(np.int64),
        y=table["y"].to_numpy().astype(np.int64),
        probabilities=np.stack(table["probabilities"].to_numpy(zero_copy_only=False).tolist()),
        names=tuple(table["class"].to_pylist()),
        side=float(drawing.tile_px) if record is None else record.tile_side,
        origin=(0, 0) if record is None else record.origin,
        segmenter=drawing.segmenter,
        mpp=None if record is None else record.mpp,
    )


def _read_predictions(shard: str, drawing: Drawing) -> pa.Table:
    columns, name = ["slide", "x", "y", "class", "probabilities"], folder_name(drawing.uri)
    found = read_columns(join(drawing.uri, shard), columns, drawing.storage, belongs_to=name)
    if found is None:
        raise InputError(
            f"predictions {join(drawing.uri, shard)} are missing or damaged; delete {join(drawing.uri, HEADER_NAME)} "
            "and run the same command again, which makes the missing ones."
        )
    return found
