"""Cut tiles from their slides when they are read, for tile sets that hold places alone."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from histill.cluster.sharded import check_unchanged
from histill.config.common import Storage
from histill.config.ingest_tiles import SlideSource
from histill.stream.read import ReadRequest, TileSource
from histill.tiles.manifest import Manifest
from histill.tiles.slide_identity import fingerprint_source
from histill.tiles.slide_records import SlideRecord, read_slides
from histill.tiles.slides import SlideRow, open_slide
from histill.tiles.tiling import Squares, cut_squares

if TYPE_CHECKING:
    from histill.tiles.tiled_slide import TiledSlide


class TileCutter:
    """Cuts the tiles that are requested, by a number of threads; encoded, so that they are those of a cut set.

    The slide of the last request stays open for the next one, because one in object storage is fetched for it.
    """

    def __init__(self, manifest: Manifest, source: SlideSource, storage: Storage, threads: int = 1) -> None:
        self._manifest, self._source, self._storage, self._threads = manifest, source, storage, threads
        self._records = read_slides(manifest, storage)
        groups = manifest.count("shard", "row_group")
        first = accumulate((count for _, count in groups), initial=0)
        self._first = {group: row for (group, _), row in zip(groups, first, strict=False)}
        self._opened: str | None = None
        self._stack = ExitStack()

    def __call__(self, source: TileSource, reads: Iterable[ReadRequest]) -> Generator[pa.Table]:
        """Yield a table for each request: `entry` and `image`. Raises Unreadable when a slide is damaged."""
        for read in reads:
            rows = self._first[read.shard, read.row_group] + read.rows
            yield pa.table({"image": self._cut(rows), "entry": pa.array(read.entries, pa.int64())})

    def _cut(self, rows: np.ndarray) -> pa.Array:
        """The encoded tiles of some rows of the manifest (int64), all of one slide."""
        table = self._manifest.read(["slide", "case", "x", "y"], rows).to_pydict()
        record = self._records[table["slide"][0]]
        row = SlideRow(record.source, table["case"][0])
        squares = Squares(tuple(zip(table["x"], table["y"], strict=True)), record.tile_side, self._source.tile_mpp)
        tile_px = self._manifest.header.tile_px
        with (
            self._open(record) as slide,
            closing(cut_squares(slide, row, squares, self._source, tile_px, self._threads)) as tiles,
        ):
            return pa.array([tile.image for tile in tiles], pa.binary())

    @contextmanager
    def _open(self, record: SlideRecord) -> Iterator["TiledSlide"]:
        if self._opened != record.source:
            self._opened = None
            self._stack.close()
            check_unchanged(record.source, record.fingerprint, fingerprint_source(record.source, self._storage))
            self._slide = self._stack.enter_context(open_slide(record.source, self._storage))
            self._opened = record.source
        try:
            yield self._slide
        except BaseException as error:
            self._opened = None
            if not self._stack.__exit__(type(error), error, error.__traceback__):  # which says what OpenSlide meant
                raise
