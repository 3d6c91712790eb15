"""Cut one slide on several nodes: the squares of each shard are a task."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from histill.cluster.parallel import map_tasks
from histill.config.ingest_tiles import IngestConfig
from histill.tiles.annotations import SlideAnnotations
from histill.tiles.part_shards import PartShards, write_shards
from histill.tiles.slides import SlideRow, open_slide
from histill.tiles.tiling import Squares, cut_squares


@dataclass(frozen=True)
class Band:
    """The squares of one shard of a part, and the number of the shard."""

    part: str
    number: int
    row: SlideRow
    squares: Squares
    config: IngestConfig
    threads: int
    annotations: SlideAnnotations | None = None


def divide_slide(
    part: str,
    row: SlideRow,
    squares: Squares,
    config: IngestConfig,
    threads: int,
    annotations: SlideAnnotations | None = None,
) -> Sequence[Band]:
    """A band for each shard that the slide has."""
    runs = squares.divide(config.rows_per_shard)
    near = [None if annotations is None else run.near(annotations) for run in runs]
    return [
        Band(part, number, row, run, config, threads, found)
        for number, (run, found) in enumerate(zip(runs, near, strict=True))
    ]


def cut_bands(bands: Sequence[Band]) -> PartShards:
    """Cut the bands in Ray tasks of as many CPUs as they have threads.

    Raises Unreadable when one of them cannot be read, and InputError when the storage refuses.
    """
    found = dict(map_tasks(_cut_band, bands, cpus=bands[0].threads))
    return PartShards.join([found[band.number] for band in bands], bands[0].config.keep_columns)


def _cut_band(band: Band) -> tuple[int, PartShards]:
    config = band.config
    assert config.slides is not None
    with (
        open_slide(band.row.uri, config.storage) as slide,
        closing(
            cut_squares(slide, band.row, band.squares, config.slides, config.tile_px, band.threads, band.annotations)
        ) as tiles,
    ):
        return band.number, write_shards(tiles, config, band.part, band.number)
