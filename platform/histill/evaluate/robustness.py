"""Measure a model's main figure on degraded tiles: stain shift, blur, JPEG, half the resolution."""

import io
from collections.abc import Callable, Mapping
from contextlib import closing
from types import MappingProxyType

import numpy as np
import torch

from histill.cluster.progress import Progress
from histill.config.augment import Augment
from histill.evaluate.evaluator import Evaluator
from histill.evaluate.predictions import Predictions
from histill.stream import color
from histill.stream.counter_rng import draw_uniform
from histill.stream.decode import downscale_area

Change = Callable[[np.ndarray, int], np.ndarray]
"""Maps a whole tile, RGB uint8 [H, W, 3], and its manifest row to a degraded tile of the same size."""

UNCHANGED = "unchanged"
_STAIN, _BLUR_SIGMA_PX, _JPEG_QUALITY = 0.2, 1.5, 30


def _shift_stain(tile: np.ndarray, row: int) -> np.ndarray:
    draws = draw_uniform(0, 0, np.array([row]), np.array([0]), color.DRAWS)[0]
    return color.jitter_colors(tile, draws, Augment(flips=False, stain=_STAIN))


def _blur(tile: np.ndarray, row: int) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(tile, (0, 0), _BLUR_SIGMA_PX)


def _compress(tile: np.ndarray, row: int) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(tile).save(file, "JPEG", quality=_JPEG_QUALITY)
    return np.asarray(Image.open(file))


def _halve(tile: np.ndarray, row: int) -> np.ndarray:
    import cv2

    side = tile.shape[0]
    return cv2.resize(downscale_area(tile, side // 2), (side, side), interpolation=cv2.INTER_LINEAR)


EXPLAINED: Mapping[str, str] = MappingProxyType(
    {
        UNCHANGED: "as they are",
        "stain": f"hematoxylin and eosin jittered, within {_STAIN:.0%}",
        "blur": f"blurred, Gaussian of {_BLUR_SIGMA_PX:g} px",
        "jpeg": f"JPEG of quality {_JPEG_QUALITY}",
        "half_resolution": "half the resolution",
    }
)
CHANGES: Mapping[str, Change] = MappingProxyType(
    {
        UNCHANGED: lambda tile, row: tile,
        "stain": _shift_stain,
        "blur": _blur,
        "jpeg": _compress,
        "half_resolution": _halve,
    }
)


def measure_robustness(examiner: Evaluator, tiles: int) -> dict[str, float]:
    """The main figure under each change, on at most `tiles` tiles spread evenly over the split."""
    rows = examiner.rows
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(tiles, len(rows))).round().astype(int))]
    found: dict[str, list[Predictions]] = {name: [] for name in CHANGES}
    done = 0
    with closing(Progress("robustness", len(rows) * len(CHANGES), "tiles")) as progress:
        for batch in examiner.batches(rows, whole=True):
            assert batch.teacher is not None
            whole, index = batch.teacher.permute(0, 2, 3, 1).numpy(), batch.index.tolist()
            for name, change in CHANGES.items():
                changed = (change(tile, row) for tile, row in zip(whole, index, strict=True))
                seen = np.stack([downscale_area(tile, examiner.card.size_px) for tile in changed])
                found[name].append(examiner.answers(batch, torch.from_numpy(seen).permute(0, 3, 1, 2)))
                done += int((batch.index >= 0).sum())
                progress.update(done)
    main = examiner.outputs.main_metric
    return {name: float(Predictions.joined(parts).figures()[main][0]) for name, parts in found.items()}
