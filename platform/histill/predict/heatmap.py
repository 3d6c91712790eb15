"""Draw a slide's predictions as a picture."""

import io
import math
import warnings

import numpy as np

from histill.evaluate.pictures import shorten
from histill.predict.geojson import class_colors, heatmap_geojson
from histill.predict.slide_map import SlideMap

__all__ = ["SlideMap", "class_colors", "heatmap_geojson", "heatmap_png"]
_PANELS = 6  # at most this many classes are shown
_MOST_SHOWN = 480  # pixels along a panel's side: more could not be resolved when drawn
_PANEL_INCHES, _LEAST_INCHES = 4.6, 1.6
_DOTS_PER_INCH = 110


def heatmap_png(found: SlideMap) -> bytes:
    """Draw each class's probability over the slide or, for a segmenter, its share of each tile.

    The axes are level-0 pixels in QuPath's coordinates.
    """
    from matplotlib.figure import Figure

    shown = _shown(found)
    drawn = [found.image(found.probabilities[:, index], _MOST_SHOWN) for index in shown]
    (height, width), (left, top, pixel) = drawn[0][0].shape, drawn[0][1]
    inches = [max(_LEAST_INCHES, _PANEL_INCHES * side / max(height, width)) for side in (width, height)]
    figure = Figure(figsize=((inches[0] + 0.9) * len(shown) + 0.9, inches[1] + 1.2), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    highest = _highest(found, shown)
    for axis, index, (grid, _) in zip(axes, shown, drawn, strict=True):
        image = axis.imshow(
            grid, vmin=0, vmax=highest, cmap="inferno", interpolation="nearest",
            extent=(left, left + width * pixel, top + height * pixel, top),
        )  # fmt: skip
        axis.set_title(shorten(found.classes[index], _room(inches[0])), fontsize=10, parse_math=False)
        axis.set_facecolor("0.88")
        axis.tick_params(labelsize=7)
        axis.locator_params(nbins=4)
        axis.ticklabel_format(style="plain", useOffset=False)
    bar = figure.colorbar(image, ax=axes.tolist(), shrink=0.8)
    bar.set_label("share of a tile" if found.segmenter else "probability", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(shorten(found.slide, _room(figure.get_figwidth())), fontsize=10, parse_math=False)
    figure.supxlabel("pixels of level 0, as QuPath counts them", fontsize=7)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the file name shows it instead
        figure.savefig(buffer, dpi=_DOTS_PER_INCH, format="png")
    return buffer.getvalue()


def _room(inches: float) -> int:
    """Characters of a title, of 10 points, that fit into a width."""
    return max(12, int(12 * inches))


def _shown(found: SlideMap) -> list[int]:
    """The classes to draw: without a segmenter's background, at most the most frequent ones."""
    classes = np.arange(1 if found.segmenter and len(found.classes) > 1 else 0, len(found.classes))
    order = np.argsort(-found.probabilities.mean(0)[classes], kind="stable")[:_PANELS]
    return sorted(classes[order].tolist())


def _highest(found: SlideMap, shown: list[int]) -> float:
    """The upper end of the color scale, adapted to shares because all may be small."""
    if not found.segmenter:
        return 1.0
    return max(0.05, math.ceil(float(found.probabilities[:, shown].max()) * 20) / 20)
