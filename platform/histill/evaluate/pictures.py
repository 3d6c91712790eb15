"""Draw the pictures of a score, each returned as PNG bytes."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from histill.evaluate.evaluator import Evaluator
from histill.evaluate.predictions import Predictions
from histill.evaluate.shown_tiles import ShownTile, read_shown
from histill.metrics.weighted import BINS, bin_of

COLORS = ((0.0, 0.75, 0.25), (0.9, 0.3, 0.0), (0.1, 0.35, 0.9), (0.8, 0.0, 0.7), (0.0, 0.7, 0.8))
_ACROSS, _ROOM = 4, 30  # a classifier's tiles per row, characters that fit above one
_ROOM_IN_ROW = 38  # characters above one of three tiles


def draw_tiles(examiner: Evaluator, tiles: np.ndarray) -> bytes:
    """Draw `tiles` (manifest rows, in this order) with the model's predictions.

    For a segmenter, rows of tile | reference | model with outlined classes and Dice in the titles; for a classifier,
    tiles with the predicted class, its probability, and the label. Raises InputError when none can be decoded.
    """
    shown = read_shown(examiner, tiles)
    return (
        _rows(shown, *name_columns(examiner), len(examiner.outputs.scored)) if examiner.outputs.dense else _grid(shown)
    )


def name_columns(examiner: Evaluator) -> tuple[str, str]:
    """What a segmenter's reference and the model are called above their outlines."""
    return "mask" if examiner.teacher is None else "teacher", "student" if examiner.card.teacher_digest else "model"


def draw_reliability(answers: Predictions) -> bytes:
    """Draw a reliability diagram: accuracy and number of tiles by confidence (DeGroot & Fienberg 1983)."""
    from matplotlib.figure import Figure

    probabilities = answers.probabilities()
    if answers.spec.multi_label:
        confidence, right = probabilities.ravel(), answers.truth.ravel() > 0
        claimed, held = "probability of a class", "tiles that have it"
    else:
        confidence, right = probabilities.max(1), answers.decide() == answers.truth
        claimed, held = "probability of the decided class", "decisions that are right"
    bins = bin_of(confidence)
    count = np.bincount(bins, minlength=BINS)
    share = np.bincount(bins, right, BINS) / np.maximum(count, 1)
    middle = (np.arange(BINS) + 0.5) / BINS
    figure = Figure(figsize=(4.6, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    upper.plot((0, 1), (0, 1), color="gray", linewidth=1, linestyle=":")
    upper.bar(middle[count > 0], share[count > 0], width=1 / BINS, edgecolor="white")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel=f"share of {held}")
    lower.bar(middle, count, width=1 / BINS, edgecolor="white")
    lower.set(xlabel=claimed, ylabel="tiles")
    return write_png(figure)


def _rows(shown: Sequence[ShownTile], reference: str, model: str, classes: int) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.1 * len(shown) + 0.3), layout="constrained")
    axes = figure.subplots(len(shown), 3, squeeze=False)
    for row, tile in zip(axes, shown, strict=True):
        titled = ((tile.name, None), (reference, tile.reference), (f"{model}, {tile.said}", tile.decided))
        for axis, (text, decided) in zip(row, titled, strict=True):
            show_tile(axis, tile.image, text, _ROOM_IN_ROW)
            if decided is not None:
                draw_outlines(axis, decided, classes)
    return write_png(figure)


def _grid(shown: Sequence[ShownTile]) -> bytes:
    from matplotlib.figure import Figure

    down = -(-len(shown) // _ACROSS)
    figure = Figure(figsize=(2.3 * _ACROSS, 2.9 * down), layout="constrained")
    axes = figure.subplots(down, _ACROSS, squeeze=False).flatten().tolist()
    for axis, tile in zip(axes, shown, strict=False):
        show_tile(axis, tile.image, f"{tile.name}\n{tile.said}", _ROOM)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    return write_png(figure)


def show_tile(axis: Any, image: np.ndarray, title: str, room: int) -> None:
    """Draw a tile, uint8 [H, W, 3], without axes and with a title, of each line as many characters as there is room."""
    axis.imshow(image)
    shown = "\n".join(shorten(line, room) for line in title.splitlines())
    axis.set_title(shown, fontsize=9, parse_math=False)  # names may contain $, which would start math mode
    axis.set_axis_off()


def shorten(text: str, room: int) -> str:
    """`text` within `room` characters, with ... for what is left out of its middle: names differ at both ends."""
    if len(text) <= room:
        return text
    kept = room - len("...")
    return f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"


def draw_outlines(axis: Any, decided: torch.Tensor, classes: int) -> None:
    """Outline each class except the background in its color; `decided` is int64 [H, W]."""
    for index in range(1, classes):
        inside = torch.eq(decided, index).numpy()
        if inside.any():
            axis.contour(inside, levels=[0.5], colors=[COLORS[(index - 1) % len(COLORS)]], linewidths=0.9)


def write_png(figure: Any) -> bytes:
    """Render the figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90, format="png")
    return buffer.getvalue()
