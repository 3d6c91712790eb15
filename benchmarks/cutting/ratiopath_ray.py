"""ratiopath on Ray Data, as its documentation composes it, with histill's squares and encoder."""

from typing import Any

import simplejpeg

from benchmarks.cutting.cases import QUALITY, TILE_PX, Cut


def cut(squares: Cut) -> int:
    """Cut the squares; returns the number of tiles."""
    import ray
    from ratiopath.ray import read_slides
    from ratiopath.tiling import grid_tiles, read_slide_tiles

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
    if squares.side != TILE_PX:
        raise NotImplementedError("ratiopath does not resample")
    kept = set(squares.corners)

    def tiles(row: dict[str, Any]) -> list[dict[str, Any]]:
        extent = (row["extent_x"], row["extent_y"])
        corners = grid_tiles(extent, (TILE_PX, TILE_PX), (TILE_PX, TILE_PX))
        return [{**row, "tile_x": int(x), "tile_y": int(y)} for x, y in corners if (int(x), int(y)) in kept]

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        images = [simplejpeg.encode_jpeg(tile, quality=QUALITY, colorsubsampling="444") for tile in batch["tile"]]
        return {"x": batch["tile_x"], "y": batch["tile_y"], "image": images}

    slides = read_slides(str(squares.slide), tile_extent=TILE_PX, stride=TILE_PX, mpp=squares.case.mpp)
    cut = slides.flat_map(tiles).repartition(target_num_rows_per_block=64)
    encoded = cut.map_batches(read_slide_tiles, batch_size=16).map_batches(encode, batch_size=16)
    encoded.write_parquet(str(squares.out / "tiles"))
    return sum(file.metadata.num_rows for file in _files(squares))


def _files(squares: Cut) -> list[Any]:
    import pyarrow.parquet as pq

    return [pq.ParquetFile(path) for path in (squares.out / "tiles").glob("*.parquet")]
