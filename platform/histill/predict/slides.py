"""Plan what is made of each slide after its tiles are predicted: heatmaps, files of features."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histill.artifacts.model_folder import ModelCard
from histill.config.common import Storage
from histill.config.objects import Objects
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.predict.file_names import name_files
from histill.predict.record import HEADER_NAME
from histill.predict.shard import PredictionJob
from histill.predict.slide_pixels import SlidePixels, TilePlaces, place_tiles
from histill.storage.control import measure_files
from histill.storage.tables import read_columns
from histill.storage.uris import folder_name, join
from histill.tiles.manifest import Manifest
from histill.tiles.slide_records import SlideRecord, read_slides


@dataclass(frozen=True)
class PredictedSlide:
    """A slide with predictions. Small, because it is sent to a task."""

    slide: str
    file: str  # base name of its files, without extension
    shards: tuple[str, ...]  # shards with tiles of it
    record: SlideRecord | None  # None: the set has no slide records
    uri: str  # folder of the predictions
    outputs: OutputSpec
    answer_px: int  # side of a segmenter's answer to a tile
    tile_px: int
    tile_mpp: float
    storage: Storage
    objects: Objects | None = None  # how its objects are found; None: they are not asked for
    overlay_mpp: float | None = None  # um/px of its overlay; None: not asked for

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that decisions choose from."""
        return self.outputs.scored

    @property
    def segmenter(self) -> bool:
        """Whether the predictions are of pixels."""
        return self.outputs.dense

    @property
    def origin(self) -> tuple[int, int]:
        """The corner of OpenSlide's bounds, from which QuPath counts."""
        return (0, 0) if self.record is None else self.record.origin

    @property
    def tile_side(self) -> float:
        """The side of a tile in level-0 pixels; without a slide record, of the tile itself."""
        return float(self.tile_px) if self.record is None else self.record.tile_side

    def read_tiles(self, *columns: str) -> pa.Table:
        """Read `columns` of the predictions for the slide's decodable tiles.

        Raises InputError when some predictions are missing.
        """
        return pa.concat_tables([self._read_tiles(shard, columns) for shard in self.shards])

    def find_places(self) -> TilePlaces | None:
        """Where the slide's decodable tiles are; None if there are none. Raises InputError as `read_tiles` does."""
        tables = [self._read_tiles(shard, ["x", "y"]) for shard in self.shards]
        counts, table = [each.num_rows for each in tables], pa.concat_tables(tables)
        if not table.num_rows:
            return None
        columns, rows = (place_tiles(table[axis].to_numpy(), self._scale, self.tile_px) for axis in "xy")
        numbers = np.concatenate([np.arange(count) for count in counts])
        return TilePlaces(np.repeat(np.arange(len(counts)), counts), numbers, columns, rows)

    def lay_out(self, places: TilePlaces) -> SlidePixels:
        """The picture of tiles at `places` without any answers, so that it has no windows yet."""
        mpp = self.tile_mpp if self.record is None else self.record.mpp * self._scale
        none = pa.chunked_array([], pa.binary())
        return SlidePixels(
            self.outputs, none, places.columns, places.rows, self.answer_px, self.tile_px, self._scale, mpp
        )

    def read_pixels(self, places: TilePlaces) -> SlidePixels:
        """The answers to the tiles at `places` as one picture; shards without any of them are not read.

        Raises InputError as `read_tiles` does.
        """
        answers = [
            self._read_tiles(self.shards[shard], ["logits"])["logits"].take(places.numbers[places.shards == shard])
            for shard in np.unique(places.shards)
        ]
        chunks = [chunk for each in answers for chunk in each.chunks]
        return replace(self.lay_out(places), answers=pa.chunked_array(chunks, pa.binary()))

    @property
    def _scale(self) -> float:
        """Level-0 pixels per pixel of a tile."""
        return self.tile_side / self.tile_px

    def _read_tiles(self, shard: str, columns: Sequence[str]) -> pa.Table:
        """`columns` for the slide's decodable tiles in a shard."""
        table = self._read(shard, ["slide", "class", *columns])
        return table.filter(pc.and_(pc.equal(table["slide"], self.slide), pc.is_valid(table["class"])))

    def _read(self, shard: str, columns: list[str]) -> pa.Table:
        uri = join(self.uri, shard)
        found = read_columns(uri, columns, self.storage, belongs_to=folder_name(self.uri))
        if found is None:
            raise InputError(
                f"predictions {uri} are missing or damaged; delete {join(self.uri, HEADER_NAME)} and run the same "
                "command again, which makes the missing ones.",
                code="predictions-damaged",
            )
        return found


def plan_slides(job: PredictionJob, manifest: Manifest, card: ModelCard) -> list[PredictedSlide]:
    """The slides that get files of their own, ascending. In a set without slide records these are the slides with
    several tiles: the others are single images.

    Raises InputError when the slide records do not belong to the set.
    """
    storage, split = job.config.storage, job.config.split
    records = read_slides(manifest, storage) if manifest.header.slides is not None else {}
    shards = _find_shards(manifest, split, alone=bool(records))
    files = name_files(shards)
    return [
        PredictedSlide(
            slide=slide,
            file=files[slide],
            shards=shards[slide],
            record=records.get(slide),
            uri=job.uri,
            outputs=card.outputs,
            answer_px=card.size_px,
            tile_px=manifest.header.tile_px,
            tile_mpp=manifest.header.mpp,
            storage=storage,
            objects=job.config.objects,
            overlay_mpp=job.config.overlay_mpp,
        )
        for slide in shards
    ]


def find_unmade(slides: Sequence[PredictedSlide], folder: str, endings: Sequence[str]) -> list[PredictedSlide]:
    """The slides that lack a file with one of the `endings` in `folder`, a folder within the predictions'."""
    if not slides:
        return []
    names = [each.file + ending for each in slides for ending in endings]
    there = measure_files(join(slides[0].uri, folder), names, slides[0].storage)
    return [each for each in slides if not all(each.file + ending in there for ending in endings)]


def warn_of_unrecorded(slides: Sequence[PredictedSlide], tiles: str) -> None:
    """Warn about slides of the set `tiles` without a record of a tile's size on the slide."""
    unknown = [slide for slide in slides if slide.record is None]
    if unknown:
        print(
            f"warning: {tiles} has no record of {len(unknown)} of its slides; their heatmaps and features assume that "
            f"a tile is {unknown[0].tile_px} px of level 0, which is wrong if it was cut at another resolution than "
            "the slide's own; ingest the slides again for correctly placed tiles.",
            file=sys.stderr,
        )


def _find_shards(manifest: Manifest, split: str | None, *, alone: bool) -> dict[str, tuple[str, ...]]:
    """The shards with tiles of each slide of `split` (None: all); slides with a single tile only if `alone`."""
    shards: dict[str, list[str]] = {}
    tiles: Counter[str] = Counter()
    for (of, slide, shard), count in manifest.count("split", "slide", "shard"):
        if split in (None, of):
            shards.setdefault(slide, []).append(shard)
            tiles[slide] += count
    return {slide: tuple(found) for slide, found in sorted(shards.items()) if alone or tiles[slide] > 1}
