"""Run a model file by OpenVINO on the CPU."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from histill.artifacts.formats.made import Answer

_OPTIONS = {
    "INFERENCE_PRECISION_HINT": "f32",  # for what is not int8: else CPUs that have bfloat16 use it
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
    "ENABLE_CPU_PINNING": "NO",  # the workers of a node would all be given its first cores
}


@cache
def open_core() -> Any:
    """OpenVINO's core, which lives as long as the process, since its plugin for CPUs must.

    The plugin gives the thread that loads it an alternate signal stack, and frees that together with itself, in
    whichever thread drops it: the next signal to the first thread, such as Ctrl-C, would end the process by a
    segmentation fault.
    """
    import openvino

    return openvino.Core()


def run_openvino(model: bytes, threads: int, at_once: int | None = None, weights: bytes = b"") -> Answer:
    """What a file answers, an ONNX file or the XML of OpenVINO with its `weights`, on so many threads.

    It takes any number of tiles, or at most `at_once`: a model for a fixed number is a quarter faster, and fewer tiles
    are filled up.
    """
    core = open_core()
    read = core.read_model(model, weights)
    if at_once is not None:
        read.reshape([at_once, *(dimension.get_length() for dimension in list(read.input().partial_shape)[1:])])
    compiled = core.compile_model(read, "CPU", _OPTIONS | {"INFERENCE_NUM_THREADS": str(threads)})
    request = compiled.create_infer_request()

    def answer(tiles: Tensor) -> Tensor:
        pixels = tiles.float().contiguous().numpy()
        if at_once is not None and len(pixels) < at_once:
            pixels = np.concatenate([pixels, np.zeros((at_once - len(pixels), *pixels.shape[1:]), np.float32)])
        found = request.infer({0: pixels}, share_inputs=True)[0]
        return torch.from_numpy(np.array(found[: len(tiles)], np.float32))

    return answer
