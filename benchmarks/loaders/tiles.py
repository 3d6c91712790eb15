"""Synthetic tiles as expensive to decode as H&E: 512 px JPEG, quality 90, 80-90 KB each. Needs numpy and Pillow."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE_PX = 512
QUALITY = 90
FIELDS = 4
FIELD_PX = 2048
NOISE = 3.0  # gray levels (standard deviation) of the grain added to each tile; sets the size of the JPEGs
# Optical densities of hematoxylin and eosin: Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23:291, 2001.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], np.float32)


def make_tiles(folder: Path, count: int, seed: int) -> list[Path]:
    """`count` JPEG files in `folder`, in a fixed order and the same for the same `seed`; finished ones are kept."""
    files = [folder / f"{tile:06d}.jpg" for tile in range(count)]
    finished = folder / "finished"
    if finished.exists():
        return files
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    fields = [synthesize_field(generator) for _ in range(FIELDS)]
    grain = (NOISE * generator.standard_normal((FIELD_PX, FIELD_PX, 3), np.float32)).round().astype(np.int16)
    for file in files:
        tile = _crop(fields[generator.integers(FIELDS)], generator) + _crop(grain, generator)
        Image.fromarray(tile.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    finished.touch()
    return files


def synthesize_field(generator: np.random.Generator) -> np.ndarray:
    """A field of tissue, int16 RGB [FIELD_PX, FIELD_PX, 3] in 0..255: nuclei in fibrous stroma."""
    stroma = (
        0.5 + 0.18 * _texture(generator, (9, 3)) + 0.10 * _texture(generator, (2, 5)) + 0.08 * _texture(generator, 1)
    )
    nuclei = 1 / (1 + np.exp(-9 * (_texture(generator, 6) - 1.1)))
    chromatin = 1 + 0.25 * _texture(generator, 1.2)
    hematoxylin = 0.08 + 0.9 * nuclei * chromatin
    amounts = np.stack([hematoxylin, stroma * (1 - 0.4 * nuclei)], axis=-1).clip(0, None)
    return (255 * np.exp(-amounts @ STAINS)).round().astype(np.int16)


def _texture(generator: np.random.Generator, sigma: float | tuple[float, float]) -> np.ndarray:
    """Smoothed noise, float32 [FIELD_PX, FIELD_PX], mean 0, standard deviation 1; `sigma` (y, x) is in pixels."""
    noise = generator.standard_normal((FIELD_PX, FIELD_PX), np.float32)
    down, across = np.broadcast_to(sigma, 2)
    y, x = np.fft.fftfreq(FIELD_PX)[:, None], np.fft.rfftfreq(FIELD_PX)
    gaussian = np.exp(-2 * np.pi**2 * ((down * y) ** 2 + (across * x) ** 2))
    smooth = np.fft.irfft2(np.fft.rfft2(noise) * gaussian, noise.shape).astype(np.float32)
    return (smooth - smooth.mean()) / smooth.std()


def _crop(field: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    top, left = generator.integers(0, FIELD_PX - SIDE_PX + 1, 2)
    return field[top : top + SIDE_PX, left : left + SIDE_PX]
