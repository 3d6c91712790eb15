"""Bare loops: read, decode or draw, shrink and run the same engine; nothing is written."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from histill.artifacts.model_folder import load
from histill.config.common import Storage
from histill.engines.engine import Engine
from histill.engines.loaded_model import LoadedModel
from histill.engines.start import Work, start_engine
from histill.stream.prepare_tile import downscale_area, reduction_for

BATCH = 32


def predict_tile_set(model: str, tiles: str) -> int:
    """Parquet, a JPEG decoder that shrinks in the DCT domain, and the engine; the number of tiles."""
    import pyarrow.parquet as pq

    from histill.stream.decode import decode_image

    def pixels() -> Iterator[np.ndarray]:
        for path in sorted(Path(tiles, "shards").rglob("*.parquet")):
            parquet = pq.ParquetFile(path)
            for group in range(parquet.num_row_groups):
                for image in parquet.read_row_group(group, columns=["image"])["image"].to_pylist():
                    yield decode_image(image, 512, reduction_for(512, runner.size_px))

    runner = _Runner(model)
    return runner.run(pixels())


def predict_slide(model: str, slide: str) -> int:
    """OpenSlide's `read_region` of the squares that show tissue, and the engine; the number of tiles."""
    from openslide import OpenSlide

    from histill.config.ingest_tiles import SlideSource
    from histill.tiles.slides import SlideRow, open_slide
    from histill.tiles.tiling import lay_out

    runner = _Runner(model)
    with open_slide(slide, Storage()) as opened:
        source = SlideSource(paths=(slide,), mpp=runner.tile_mpp)
        squares = lay_out(opened, SlideRow(slide, "case"), source, runner.tile_px).kept(source.min_tissue)
    side = round(squares.side)
    with OpenSlide(slide) as drawn:
        regions = (drawn.read_region(corner, 0, (side, side)) for corner in squares.corners)
        return runner.run(np.asarray(region.convert("RGB")) for region in regions)


class _Runner:
    """Shrinks tiles to the model's side and runs them in batches."""

    def __init__(self, model: str) -> None:
        network, card, digest = load(model, Storage())
        self.tile_px, self.tile_mpp, self.size_px = card.tile_px, card.tile_mpp, card.size_px
        self._model = LoadedModel(model, network, card, digest, Storage())
        self._engine: Engine | None = None

    def run(self, tiles: Iterator[np.ndarray]) -> int:
        buffer = np.empty((BATCH, self.size_px, self.size_px, 3), np.uint8)
        seen, slot = 0, 0
        for pixels in tiles:
            buffer[slot] = downscale_area(pixels, self.size_px)
            seen, slot = seen + 1, slot + 1
            if slot == BATCH:
                self._ask(buffer)
                slot = 0
        if slot:
            self._ask(buffer[:slot])
        return seen

    def _ask(self, buffer: np.ndarray) -> None:
        tiles = torch.from_numpy(buffer).permute(0, 3, 1, 2)
        if self._engine is None:
            work = Work(10**9, BATCH, 1, torch.device("cpu"))
            self._engine = start_engine("openvino", self._model, tiles, work)
        self._engine(tiles).softmax(1)
