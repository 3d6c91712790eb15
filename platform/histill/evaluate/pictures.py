"""Pictures that show what the figures mean."""

import io
from typing import Any

import numpy as np
import torch

from histill.artifacts.model_folder import load, resolve
from histill.config.common import Storage
from histill.config.scoring import HeldOut
from histill.distill.boundary import counted
from histill.errors import InputError
from histill.evaluate.score import Judged, checked_tiles, judged_batches

_COLOURS = ((0.0, 0.75, 0.25), (0.9, 0.3, 0.0), (0.1, 0.35, 0.9), (0.8, 0.0, 0.7), (0.0, 0.7, 0.8))


def comparison_rows(model: str, held_out: HeldOut, rows: int, storage: Storage) -> bytes:
    """A PNG of rows tile | reference | model: evenly spaced tiles of the split, classes outlined, Dice in the titles.

    Raises InputError as `score_model` does.
    """
    network, card, _ = load(resolve(model, storage), storage)
    manifest, teacher = checked_tiles(card, held_out, storage)
    split = manifest.rows_of(held_out.split)
    wanted = set(split[np.linspace(0, len(split) - 1, min(rows, len(split))).round().astype(int)].tolist())
    shown: list[tuple[str, Judged, int]] = []
    for judged in judged_batches(network, card, manifest, teacher, held_out, storage, pictured=True):
        for slot, tile in enumerate(judged.batch.index.tolist()):
            if tile in wanted and bool(judged.batch.valid[slot]):
                shown.append((manifest.table["tile_id"][tile].as_py(), judged, slot))
    if not shown:
        raise InputError(f"no tile of split {held_out.split!r} in {held_out.tiles} can be decoded; ingest them again.")
    names = ("mask" if teacher is None else "teacher", "student" if card.teacher_digest else "model")
    return _draw(shown, names, len(counted(card.classes)))


def _draw(shown: list[tuple[str, Judged, int]], names: tuple[str, str], classes: int) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.1 * len(shown) + 0.3), layout="constrained")
    axes = figure.subplots(len(shown), 3, squeeze=False)
    for row, (name, judged, slot) in zip(axes, shown, strict=True):
        assert judged.batch.teacher is not None
        image = judged.batch.teacher[slot].permute(1, 2, 0).numpy()
        for axis, title, decided in (
            (row[0], name, None),
            (row[1], names[0], judged.reference[slot]),
            (row[2], f"{names[1]}, Dice {_dice(judged, slot):.2f}", judged.decided[slot]),
        ):
            axis.imshow(image)
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
            if decided is not None:
                _outline(axis, decided, classes)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90, format="png")
    return buffer.getvalue()


def _outline(axis: Any, decided: torch.Tensor, classes: int) -> None:
    for index in range(1, classes):
        inside = torch.eq(decided, index).numpy()
        if inside.any():
            axis.contour(inside, levels=[0.5], colors=[_COLOURS[(index - 1) % len(_COLOURS)]], linewidths=0.9)


def _dice(judged: Judged, slot: int) -> float:
    """Dice of the foreground of one tile; 1 when both are empty."""
    decided, reference = judged.decided[slot] > 0, judged.reference[slot] > 0
    total = int(decided.sum() + reference.sum())
    return 2 * int(torch.logical_and(decided, reference).sum()) / total if total else 1.0
