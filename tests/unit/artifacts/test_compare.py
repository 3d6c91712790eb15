"""What runs a model is compared with it: every tile, each number, and a tile alone."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from histill.artifacts.formats.compare import measure_difference

pytestmark = pytest.mark.unit


def change_last(tiles: Tensor, value: float) -> Tensor:
    found = tiles.clone()
    found[-1, 0] += value
    return found


@pytest.mark.parametrize(
    ("answer", "difference"),
    [
        (lambda tiles: tiles, 0.0),
        (lambda tiles: change_last(tiles, 0.5), 0.5),
        (lambda tiles: tiles + (0.25 if len(tiles) == 1 else 0.125), 0.25),
        (lambda tiles: change_last(tiles, math.nan), math.inf),
        (lambda tiles: change_last(tiles, math.nan) if len(tiles) > 1 else tiles, math.inf),
        (lambda tiles: tiles[:, :1], math.inf),
        (lambda tiles: tiles[:2], math.inf),
    ],
)
def test_the_largest_difference(answer: Callable[[Tensor], Tensor], difference: float) -> None:
    tiles = torch.arange(12.0).reshape(4, 3)
    assert measure_difference(answer, tiles, tiles) == difference
