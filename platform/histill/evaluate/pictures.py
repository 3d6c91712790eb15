"""Draw the pictures of a score, each returned as PNG bytes."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from histill.errors import InputError
from histill.evaluate.evaluator import Evaluator
from histill.evaluate.predictions import Predictions
from histill.metrics.weighted import BINS, bin_of
from histill.outputs import OutputSpec
from histill.stream.tile_batch import TileBatch

COLORS = ((0.0, 0.75, 0.25), (0.9, 0.3, 0.0), (0.1, 0.35, 0.9), (0.8, 0.0, 0.7), (0.0, 0.7, 0.8))
_ACROSS, _ROOM = 4, 30  # a classifier's tiles per row, characters that fit above one
_ROOM_IN_ROW = 38  # characters above one of three tiles


def spread_tiles(examiner: Evaluator, count: int) -> np.ndarray:
    """Manifest rows, int64, of at most `count` tiles spread evenly over the split."""
    rows = examiner.rows
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]


def find_worst_tiles(answers: Predictions, count: int) -> np.ndarray:
    """Manifest rows, int64, ascending, of the `count` tiles with the worst predictions."""
    return np.sort(answers.rows[np.argsort(answers.per_tile(), kind="stable")[:count]])


def draw_tiles(examiner: Evaluator, tiles: np.ndarray) -> bytes:
    """Draw `tiles` (manifest rows) with the model's predictions.

    For a segmenter, rows of tile | reference | model with outlined classes and Dice in the titles; for a classifier,
    tiles with the predicted class, its probability, and the label. Raises InputError when none can be decoded.
    """
    shown = [each for batch in examiner.batches(tiles, whole=True) for each in _read_shown(examiner, batch)]
    if not shown:
        raise InputError(
            f"none of {len(tiles)} tiles of {examiner.manifest.uri} can be decoded; ingest them again.",
            code="tiles-undecodable",
        )
    if not examiner.outputs.dense:
        return _grid([(name, image, title) for name, image, title, *_ in shown])
    names = (
        "mask" if examiner.teacher is None else "teacher",
        "student" if examiner.card.teacher_digest else "model",
    )
    return _rows(shown, names, len(examiner.outputs.scored))


def draw_confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> bytes:
    """Draw a confusion matrix: counts, and shares of each reference class by decided class."""
    from matplotlib.figure import Figure

    table = np.array(counts, np.float64)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = max(3.6, 0.75 * len(classes) + 1.8)
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="decided", ylabel="reference")
    for row, line in enumerate(counts):
        for place, count in enumerate(line):
            text = f"{shares[row, place]:.0%}\n{_count(count)}"
            color = "white" if shares[row, place] > 0.6 else "black"
            axis.text(place, row, text, ha="center", va="center", color=color, fontsize=8)
    return write_png(figure)


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


def _read_shown(examiner: Evaluator, batch: TileBatch) -> Iterator[tuple[Any, ...]]:
    """Yield each tile's name, pixels and title and, for a segmenter, its reference and decisions."""
    assert batch.teacher is not None
    logits = examiner.logits(batch.student)
    pixels, dense = batch.teacher.permute(0, 2, 3, 1).numpy(), examiner.outputs.dense
    references = examiner.reference(batch) if dense else batch.label
    assert references is not None
    for slot, row in enumerate(batch.index.tolist()):
        if not bool(batch.valid[slot]):
            continue
        name, reference = examiner.manifest.table["tile_id"][row].as_py(), references[slot]
        if dense:
            said = examiner.outputs.decide(logits[slot : slot + 1])[0]
            yield name, pixels[slot], f"Dice {_dice(said, reference):.2f}", reference, said
        else:
            yield name, pixels[slot], _title_tiles(examiner.outputs, logits[slot], reference)


def _title_tiles(outputs: OutputSpec, logits: torch.Tensor, label: torch.Tensor) -> str:
    """A tile's title from a classifier's logits, [K], and its label, [] or [K]."""
    decision = outputs.decide(logits[None])[0]
    said, there = (", ".join(outputs.names(each)) or "none" for each in (decision, label))
    if not outputs.multi_label:
        said += f" {float(outputs.probabilities(logits[None])[0, decision]):.0%}"
    return f"predicted {said}\nlabel {there}"


def _rows(shown: Sequence[tuple[Any, ...]], names: tuple[str, str], classes: int) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.1 * len(shown) + 0.3), layout="constrained")
    axes = figure.subplots(len(shown), 3, squeeze=False)
    for row, (name, image, title, reference, said) in zip(axes, shown, strict=True):
        titled = ((row[0], name, None), (row[1], names[0], reference), (row[2], f"{names[1]}, {title}", said))
        for axis, text, decided in titled:
            show_tile(axis, image, text, _ROOM_IN_ROW)
            if decided is not None:
                draw_outlines(axis, decided, classes)
    return write_png(figure)


def _grid(shown: Sequence[tuple[str, np.ndarray, str]]) -> bytes:
    from matplotlib.figure import Figure

    down = -(-len(shown) // _ACROSS)
    figure = Figure(figsize=(2.3 * _ACROSS, 2.9 * down), layout="constrained")
    axes = figure.subplots(down, _ACROSS, squeeze=False).flatten().tolist()
    for axis, (name, image, title) in zip(axes, shown, strict=False):
        show_tile(axis, image, f"{name}\n{title}", _ROOM)
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


def _dice(said: torch.Tensor, reference: torch.Tensor) -> float:
    """Foreground Dice of one tile, without ignored pixels; 1 when both are empty."""
    one, other = torch.logical_and(said > 0, reference >= 0), reference > 0
    total = int(one.sum() + other.sum())
    return 2 * int(torch.logical_and(one, other).sum()) / total if total else 1.0


def _count(count: int) -> str:
    return f"{count:,}" if count < 100_000 else f"{count / 1e6:.1f} M"


def write_png(figure: Any) -> bytes:
    """Render the figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90, format="png")
    return buffer.getvalue()
