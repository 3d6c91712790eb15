"""Score the best constant prediction, the same for every tile or pixel; a useful model must beat it."""

import numpy as np

from histill.evaluate.predictions import Predictions
from histill.metrics.overlap import dice_and_iou
from histill.metrics.weighted import nan_mean


def score_constant(answers: Predictions) -> float:
    """The main figure of the best constant prediction for the same tiles, in 0..1.

    With K classes present, any constant class has balanced accuracy 1/K; with multiple labels it is 1/2. A segmenter
    that assigns every pixel to class k has Dice 2 p / (1 + p) for that class, where p is its share of the pixels.
    """
    if not answers.spec.dense:
        return 0.5 if answers.spec.multi_label else 1 / len(np.unique(answers.truth))
    counts = answers.said.sum(0)
    said = np.einsum("r,kd->krd", counts.sum(1), np.eye(len(counts)))  # one constant model per class k
    return float(np.nanmax([0.0, *nan_mean(dice_and_iou(said)[0][:, 1:])]))
