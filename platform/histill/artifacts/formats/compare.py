"""Compare what runs a model with the model."""

import math

import torch
from torch import Tensor

from histill.artifacts.formats.made import Answer


@torch.inference_mode()
def measure_difference(answer: Answer, tiles: Tensor, expected: Tensor) -> float:
    """The largest difference of the answers from those `expected` of the model, for N tiles and for the first alone.

    Infinite if an answer is nan, or one is missing.

    Args:
        tiles: [N, 3, S, S] in 0..255, as `answer` takes them.
        expected: float32, [N, ...].
    """
    return max(_largest(answer(tiles), expected), _largest(answer(tiles[:1]), expected[:1]))


def _largest(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    gap = float((found - expected).abs().max())
    return math.inf if math.isnan(gap) else gap
