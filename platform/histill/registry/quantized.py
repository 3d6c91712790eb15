"""Score quantized formats as candidates: against the float model, on the same held-out tiles."""

import dataclasses
import math
import time

import torch

from histill.artifacts.formats.made import Answer, Export, RoundedScore
from histill.config.promote_model import Gates
from histill.engines.measure import measure_tile
from histill.evaluate.bootstrap import paired_difference
from histill.evaluate.evaluator import Examined, predict_split
from histill.evaluate.score import read_column
from histill.outputs import MAIN_METRIC

_BATCH = 8
_SECONDS = 1.0


def judge_quantized(export: Export, examined: Examined, gates: Gates) -> Export:
    """The export with its score if it is quantized; one that loses more than the margin keeps no files.

    `examined` has the predictions of the float model, and the held-out tiles.
    """
    made = export.made
    if made is None or made.rounding is None:
        return export
    examiner = examined.examiner
    answers = predict_split(dataclasses.replace(examiner, answer=made.answer), "", None)
    figure = MAIN_METRIC[examiner.outputs.form]
    cases = read_column(examiner, answers, "case")
    difference, (low, high) = paired_difference(answers, examined.answers, cases, figure, gates.bootstrap_samples)
    fast, slow = measure_speeds((made.answer, made.rounding.parent), examiner.card.size_px)
    score = RoundedScore(
        figure=figure,
        value=float(answers.figures()[figure][0]),
        difference=difference,
        low=low,
        high=high,
        margin=gates.max_quantization_loss,
        ms_per_tile=fast,
        float_ms_per_tile=slow,
        float_layers=made.rounding.float_layers,
        layer_errors=dict(made.rounding.errors),
    )
    if score.passed:
        return dataclasses.replace(export, listed=dataclasses.replace(export.listed, rounded=score))
    return Export(dataclasses.replace(export.listed, rounded=score, files={}), made=made)


def measure_speeds(answers: tuple[Answer, Answer], size_px: int) -> tuple[float, float]:
    """Milliseconds a tile of two engines in batches of 8, the fastest of a few rounds in which they take turns."""
    tiles = torch.randint(0, 256, (_BATCH, 3, size_px, size_px), generator=torch.Generator().manual_seed(0)).float()
    fast = slow = math.inf
    start = time.perf_counter()
    while time.perf_counter() - start < _SECONDS:
        fast, slow = (
            min(least, measure_tile(answer, tiles, _BATCH)) for least, answer in zip((fast, slow), answers, strict=True)
        )
    return 1000 * fast, 1000 * slow
