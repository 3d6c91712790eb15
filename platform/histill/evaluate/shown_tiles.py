"""Read the tiles that pictures and reports show, with what the model says of each."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from histill.errors import InputError
from histill.evaluate.evaluator import Evaluator
from histill.evaluate.predictions import Predictions
from histill.outputs import OutputSpec
from histill.stream.tile_batch import TileBatch


@dataclass(frozen=True)
class ShownTile:
    """A tile, the model's answer and the reference."""

    name: str
    image: np.ndarray  # uint8 [H, W, 3]
    said: str  # a segmenter's "Dice 0.87"; of a classifier two lines, the prediction and the label
    reference: torch.Tensor | None = None  # of a segmenter, int64 [H, W]
    decided: torch.Tensor | None = None  # by a segmenter, int64 [H, W]


def spread_tiles(examiner: Evaluator, count: int) -> np.ndarray:
    """Manifest rows, int64, of at most `count` tiles spread evenly over the split."""
    rows = examiner.rows
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]


def find_worst_tiles(answers: Predictions, count: int) -> np.ndarray:
    """Manifest rows, int64, of the `count` tiles with the worst predictions, the worst first."""
    return answers.rows[np.argsort(answers.per_tile(), kind="stable")[:count]]


def read_shown(examiner: Evaluator, tiles: np.ndarray) -> list[ShownTile]:
    """Read and predict `tiles` (manifest rows), in their order; those that cannot be decoded are left out.

    Raises InputError when none can be decoded.
    """
    found = dict(pair for batch in examiner.batches(np.sort(tiles), whole=True) for pair in _read(examiner, batch))
    if not found:
        raise InputError(
            f"none of {len(tiles)} tiles of {examiner.manifest.uri} can be decoded; ingest them again.",
            code="tiles-undecodable",
        )
    return [found[row] for row in tiles.tolist() if row in found]


def _read(examiner: Evaluator, batch: TileBatch) -> Iterator[tuple[int, ShownTile]]:
    """Yield the manifest row of each decodable tile, and the tile."""
    assert batch.teacher is not None
    logits = examiner.logits(batch.student)
    # copied: the stream reuses a batch's memory
    pixels, dense = batch.teacher.permute(0, 2, 3, 1).numpy().copy(), examiner.outputs.dense
    references = examiner.reference(batch) if dense else batch.label
    assert references is not None
    for slot, row in enumerate(batch.index.tolist()):
        if not bool(batch.valid[slot]):
            continue
        name, reference = examiner.manifest.tile(row)["tile_id"], references[slot]
        if dense:
            decided = examiner.outputs.decide(logits[slot : slot + 1])[0]
            yield row, ShownTile(name, pixels[slot], f"Dice {_dice(decided, reference):.2f}", reference, decided)
        else:
            yield row, ShownTile(name, pixels[slot], _describe_answer(examiner.outputs, logits[slot], reference))


def _describe_answer(outputs: OutputSpec, logits: torch.Tensor, label: torch.Tensor) -> str:
    """A classifier's answer, from its logits [K], and the label, [] or [K]."""
    decision = outputs.decide(logits[None])[0]
    said, there = (", ".join(outputs.names(each)) or "none" for each in (decision, label))
    if not outputs.multi_label:
        said += f" {float(outputs.probabilities(logits[None])[0, decision]):.0%}"
    return f"predicted {said}\nlabel {there}"


def _dice(decided: torch.Tensor, reference: torch.Tensor) -> float:
    """Foreground Dice of one tile, without ignored pixels; 1 when both are empty."""
    one, other = torch.logical_and(decided > 0, reference >= 0), reference > 0
    total = int(one.sum() + other.sum())
    return 2 * int(torch.logical_and(one, other).sum()) / total if total else 1.0
