"""Score the best answer that is the same for every tile or pixel; a useful model must beat it."""

import numpy as np

from histill.evaluate.predictions import Predictions
from histill.metrics.overlap import dice_and_iou
from histill.metrics.weighted import nan_mean


def score_constant(answers: Predictions) -> float:
    """The main figure of the best constant answer to the same tiles, in 0..1.

    Of K classes that occur, balanced accuracy is 1/K for whichever is said, and 1/2 with several labels. A segmenter
    that marks every pixel as class k has that class's Dice, 2 p / (1 + p) for a share p of the pixels.
    """
    if not answers.spec.dense:
        return 0.5 if answers.spec.multi_label else 1 / len(np.unique(answers.truth))
    counts = answers.said.sum(0)
    said = np.einsum("r,kd->krd", counts.sum(1), np.eye(len(counts)))  # one model for each class k
    return float(np.nanmax([0.0, *nan_mean(dice_and_iou(said)[0][:, 1:])]))
