"""What a model sees in a slide: a picture, and GeoJSON that QuPath and other viewers lay over the slide."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_COLOURS = ((217, 95, 2), (27, 158, 119), (117, 112, 179), (231, 41, 138), (102, 166, 30), (230, 171, 2))
_PANELS = 6  # classes with a picture of their own


@dataclass(frozen=True)
class SlideMap:
    """The predictions of one slide's tiles."""

    slide: str
    classes: tuple[str, ...]
    x: np.ndarray  # int64 [N], left edges, level-0 pixels of the slide
    y: np.ndarray  # int64 [N], top edges
    probabilities: np.ndarray  # float32 [N, K]
    names: tuple[str, ...]  # the class of each tile

    @property
    def side(self) -> int:
        """The side of a tile in level-0 pixels: the smallest distance of two, as they stand on a grid."""
        steps = np.concatenate([np.diff(np.unique(self.x)), np.diff(np.unique(self.y))])
        steps = steps[steps > 1]  # edges are rounded to whole pixels
        return int(steps.min()) if len(steps) else 1

    def grid(self, values: np.ndarray) -> np.ndarray:
        """`values`, [N], as an image of one pixel per tile, NaN where there is no tile."""
        side = self.side
        across, down = (np.round((each - each.min()) / side).astype(int) for each in (self.x, self.y))
        image = np.full((down.max() + 1, across.max() + 1), np.nan)
        image[down, across] = values
        return image


def heatmap_png(found: SlideMap) -> bytes:
    """The probability of each class over the slide (of a segmenter its share of the pixels)."""
    from matplotlib.figure import Figure

    shown = list(enumerate(found.classes))[-_PANELS:]  # a segmenter's first is the background
    grids = [found.grid(found.probabilities[:, index]) for index, _ in shown]
    height, width = grids[0].shape
    panel = min(6.0, max(2.2, 2.8 * width / height))
    figure = Figure(figsize=(panel * len(shown) + 0.8, 3.4), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, (_, name), grid in zip(axes, shown, grids, strict=True):
        drawn = axis.imshow(grid, vmin=0, vmax=1, cmap="inferno", interpolation="nearest")
        axis.set_title(name, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(drawn, ax=axes.tolist(), shrink=0.8)
    figure.suptitle(found.slide, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def heatmap_geojson(found: SlideMap) -> bytes:
    """A FeatureCollection: a square for each tile in level-0 pixels, its class, and the probabilities as measurements.

    Each is a tile object as QuPath exports them, so that its measurement maps colour the slide.
    """
    side, colours = found.side, class_colours(found.classes)
    probabilities = found.probabilities.astype(np.float64)
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [_square(x, y, side)]},
            "properties": {
                "objectType": "tile",
                "classification": {"name": name, "color": colours.get(name, _COLOURS[0])},
                "measurements": dict(zip(found.classes, np.round(values, 4).tolist(), strict=True)),
            },
        }
        for x, y, name, values in zip(found.x.tolist(), found.y.tolist(), found.names, probabilities, strict=True)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def class_colours(classes: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """A colour, RGB 0 to 255, for each class."""
    return {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(classes)}


def _square(x: int, y: int, side: int) -> list[list[Any]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
