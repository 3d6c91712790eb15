"""Choose the regions of a slide for the demo: a window small enough to train on in minutes, in three bands."""

import csv
import math
from pathlib import Path

import numpy as np

from histill.config.common import Storage
from histill.errors import InputError
from histill.tiles.slides import SlideRow, open_slide, read_overview, resolve_mpp
from histill.tiles.tissue import find_tissue

# One slide is one case. To get tiles for validation and test, the demo declares three disjoint bands of the window as
# cases: top and bottom edge of each, as fractions of the window.
BANDS = {"train": (0.0, 0.62), "val": (0.64, 0.80), "test": (0.82, 1.0)}
_WINDOW_UM = (1120.0, 1490.0)  # width and height: about a hundred tiles of 80 um
_OVERVIEW_UM = 16.0  # microns per pixel of the overview used for tissue detection

Box = tuple[float, float, float, float]


def write_regions(slide: Path, mpp: float | None, index: Path, cases: dict[str, str]) -> None:
    """Write the index of the slide's three bands; `cases` names the case of each split.

    Raises InputError when the slide cannot be opened, or neither it nor `mpp` (um/px) states its resolution.
    """
    left, top, right, bottom = densest_window(slide, mpp)
    with index.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["slide", "case", "left", "top", "right", "bottom"])
        for split, (begin, end) in BANDS.items():
            edges = [top + part * (bottom - top) for part in (begin, end)]
            row = (left, edges[0], right, edges[1])
            writer.writerow([slide.resolve(), cases[split], *(f"{edge:.6f}" for edge in row)])


def densest_window(slide: Path, mpp: float | None) -> Box:
    """The window with the most tissue, as fractions (left, top, right, bottom) of the slide."""
    with open_slide(str(slide), Storage()) as image:
        try:
            level0_mpp = resolve_mpp(image, SlideRow(str(slide), case=slide.stem), mpp)
        except InputError:
            raise InputError(
                f"slide {slide} does not record its microns per pixel; "
                f"look it up and pass it: histill demo --slide {slide} --slide-mpp 0.25",
                code="mpp-missing",
            ) from None
        tissue = find_tissue(read_overview(image, _OVERVIEW_UM / level0_mpp))
    height, width = tissue.shape
    wide, high = (min(size, math.ceil(um / _OVERVIEW_UM)) for size, um in zip((width, height), _WINDOW_UM, strict=True))
    sums = np.pad(tissue.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    inside = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    if not inside.max():
        raise InputError(f"slide {slide} shows no tissue; choose another one.", code="no-tiles")
    y, x = np.unravel_index(int(inside.argmax()), inside.shape)
    return float(x / width), float(y / height), float((x + wide) / width), float((y + high) / height)
