"""Write a slide's predictions as GeoJSON, for QuPath and other viewers to overlay on the slide."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from histill.predict.slide_map import SlideMap

Color = tuple[int, int, int]  # RGB, 0 to 255
_COLORS: tuple[Color, ...] = (
    (217, 95, 2), (27, 158, 119), (117, 112, 179), (231, 41, 138), (102, 166, 30), (230, 171, 2),
)  # fmt: skip
_BACKGROUND: Color = (200, 200, 200)
_SHARES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)  # of a tile: bin edges by which a segmenter's classes are subdivided


def heatmap_geojson(found: SlideMap) -> bytes:
    """A FeatureCollection with a square for each tile, its class, and its probabilities as measurements.

    Coordinates are level-0 pixels relative to the corner of OpenSlide's bounds, as in QuPath; the member `slide` states
    this. Each feature is a tile object as QuPath exports them, so QuPath's measurement maps can color the slide. A
    segmenter's measurements are the classes' shares of the tile, and its classes are subdivided by share.
    """
    colors = class_colors(found.classes)
    measured = np.round(found.probabilities.astype(np.float64), 4).tolist()
    squares = np.round(found.squares(), 3).tolist()
    features = []
    for square, said, values in zip(squares, found.names, measured, strict=True):
        properties: dict[str, Any] = {"objectType": "tile"}
        if said:  # else it has no class: unclassified in QuPath
            name, color = _classify(found, colors, said, np.array(values))
            properties["classification"] = {"name": name, "color": color}
        properties["measurements"] = dict(zip(found.classes, values, strict=True))
        geometry = {"type": "Polygon", "coordinates": [_ring(*square)]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    about = describe_place(found.slide, found.origin, found.mpp) | {
        "tile_side": found.side,
        "measurements": "shares of the tile" if found.segmenter else "probabilities",
    }
    return json.dumps({"type": "FeatureCollection", "slide": about, "features": features}).encode()


def describe_place(slide: str, origin: tuple[int, int], mpp: float | None) -> dict[str, Any]:
    """The member `slide` of a file: what its coordinates count, from where (`origin`), and um/px of level 0."""
    return {
        "name": slide,
        "coordinates": "pixels of level 0, counted from the corner of OpenSlide's bounds, as QuPath does",
        "bounds": {"x": origin[0], "y": origin[1]},
        "microns_per_pixel": mpp,
    }


def class_colors(classes: Sequence[str]) -> dict[str, Color]:
    """A color, RGB 0 to 255, for each class."""
    return {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(classes)}


def _classify(found: SlideMap, colors: Mapping[str, Color], name: str, values: np.ndarray) -> tuple[str, Color]:
    """A tile's QuPath class name and color: `a: b` for several classes, `nucleus: 10-20 %` for a segmenter."""
    if not found.segmenter:
        parts = [name] if name in colors else name.split("|")
        return ": ".join(parts), _mix([colors[part] for part in parts if part])
    if name == found.classes[0]:
        return name, _BACKGROUND
    edges = (0.0, *_SHARES, 1.0)
    step = int(np.searchsorted(_SHARES, values[found.classes.index(name)], side="right"))
    strength = 0.25 + 0.75 * min(1.0, edges[step + 1] / _SHARES[-1])  # a smaller share is paler
    return f"{name}: {100 * edges[step]:.0f}-{100 * edges[step + 1]:.0f} %", _mix(
        [colors[name], _BACKGROUND], [strength, 1 - strength]
    )


def _mix(colors: Sequence[Color], weights: Sequence[float] | None = None) -> Color:
    if not colors:
        return _BACKGROUND
    red, green, blue = np.rint(np.average(colors, axis=0, weights=weights)).astype(int).tolist()
    return red, green, blue


def _ring(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
