"""Milliseconds that OpenVINO takes for a tile, in float32 and in 8-bit integers."""

import statistics
import time

import torch
from torch import Tensor

from histill.artifacts.formats.made import Answer, Skipped
from histill.artifacts.formats.openvino_int8 import make_openvino_int8
from histill.artifacts.formats.subject import Subject
from histill.artifacts.model_folder import load
from histill.config.common import Storage

_TILES, _ROUNDS, _AT_ONCE = 32, 20, 8


def compare_int8(model: str) -> dict[str, float] | str:
    """CPU milliseconds for a tile by each, medians of turns on one thread, and their ratio; or why there is none.

    It is calibrated on noise, which changes what it answers and not how fast.
    """
    torch.set_num_threads(1)
    network, card, _ = load(model, Storage())
    size = (_TILES, 3, card.size_px, card.size_px)
    tiles = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(0)).float()
    made = make_openvino_int8(Subject.copy_of(network, card, tiles))
    if isinstance(made, Skipped) or made.rounding is None:
        return made.why if isinstance(made, Skipped) else "it was not rounded"
    times: dict[str, list[float]] = {"float": [], "int8": []}
    for _ in range(_ROUNDS):
        times["float"].append(_time(made.rounding.parent, tiles))
        times["int8"].append(_time(made.answer, tiles))
    medians = {name: statistics.median(each) for name, each in times.items()}
    megabytes = sum(map(len, made.files.values())) / 1e6
    return {**medians, "int8_over_float": medians["float"] / medians["int8"], "int8_mb": megabytes}


def _time(answer: Answer, tiles: Tensor) -> float:
    begun = time.process_time()
    for part in tiles.split(_AT_ONCE):
        answer(part)
    return 1000 * (time.process_time() - begun) / len(tiles)
