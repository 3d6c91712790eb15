"""Pyramidal slides of any size that look like H&E and cost as much to decode, written tile by tile in flat memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile

from benchmarks.loaders.tiles import FIELD_PX, NOISE, synthesize_field
from testbed.jpeg_tiff import JpegLevel, write_jpeg_tiff

QUALITY = 80
GLASS = (243, 241, 244)
MPP = 0.5
SAMPLINGS = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}


@dataclass(frozen=True)
class SlideSpec:
    """A square slide of `side` level-0 pixels, stored in tiles of `tile` pixels."""

    side: int
    tile: int = 256
    coding: str = "444"  # JPEG with its chroma sampled like this, as simplejpeg names it; or "deflate"
    seed: int = 0
    levels: int = 4  # each half of the one before

    @property
    def name(self) -> str:
        """The name of its file, without an extension."""
        return f"slide-{self.side}-{self.tile}-{self.coding}-{self.seed}"


def make_slide(folder: Path, spec: SlideSpec) -> Path:
    """The slide's TIFF in `folder`, the same for the same `spec`; a finished one is kept."""
    path = folder / f"{spec.name}.tiff"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    if spec.coding in SAMPLINGS:
        _write_jpeg(partial, spec)
    else:
        _write_deflate(partial, spec)
    partial.rename(path)
    return path


def _write_jpeg(path: Path, spec: SlideSpec) -> None:
    def encode(pixels: np.ndarray) -> bytes:
        return simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorsubsampling=spec.coding)

    levels = (
        JpegLevel(side, side, spec.tile, map(encode, tiles), MPP * factor, sampling=SAMPLINGS[spec.coding])
        for side, factor, tiles in _levels(spec)
    )
    write_jpeg_tiff(path, levels)


def _write_deflate(path: Path, spec: SlideSpec) -> None:
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for side, factor, tiles in _levels(spec):
            writer.write(
                tiles,
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(spec.tile, spec.tile),
                compression="zlib",
                photometric="rgb",
                subfiletype=int(factor > 1),
                resolution=(10_000 / (MPP * factor),) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def _levels(spec: SlideSpec) -> Iterator[tuple[int, int, Iterator[np.ndarray]]]:
    """Side, downsampling and tiles of each level."""
    generator = np.random.default_rng(spec.seed)
    field = synthesize_field(generator)
    grain = (NOISE * generator.standard_normal((FIELD_PX, FIELD_PX, 3), np.float32)).round().astype(np.int16)
    for level in range(spec.levels):
        factor = 2**level
        side = FIELD_PX // factor
        reduced = field.reshape(side, factor, side, factor, 3).mean(axis=(1, 3)).astype(np.int16)
        yield spec.side // factor, factor, _tiles(spec, spec.side // factor, factor, reduced, grain, generator)


def _tiles(
    spec: SlideSpec, side: int, factor: int, field: np.ndarray, grain: np.ndarray, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """The tiles of one level, row by row, uint8 [tile, tile, 3]."""
    count = -(-side // spec.tile)
    grid = np.arange(spec.tile)
    for row in range(count):
        for column in range(count):
            rows, columns = row * spec.tile + grid, column * spec.tile + grid
            tissue = _is_tissue(rows[:, None] / side, columns[None, :] / side)
            colors = field[np.ix_(rows % len(field), columns % len(field))]
            pixels = np.where(tissue[..., None], colors, np.array(GLASS, np.int16))
            if factor == 1:  # averaging has removed it from the other levels
                top, left = generator.integers(0, FIELD_PX - spec.tile + 1, 2)
                pixels = pixels + grain[top : top + spec.tile, left : left + spec.tile] * tissue[..., None]
            yield np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8))


def _is_tissue(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Three pieces of tissue with wavy edges, which cover 45 % of the slide; `x` and `y` from 0 to 1."""
    wave = 0.02 * np.sin(40 * x) * np.cos(34 * y)
    pieces = ((0.3, 0.32, 0.24), (0.68, 0.62, 0.27), (0.24, 0.78, 0.17))  # y, x, radius
    found = np.zeros(np.broadcast_shapes(y.shape, x.shape), bool)
    for down, across, radius in pieces:
        found |= np.hypot(y - down, x - across) + wave < radius
    return found
