"""Run an ONNX file by ONNX Runtime on the CPU."""

import numpy as np
import torch
from torch import Tensor

from histill.artifacts.formats.made import Answer


def run_onnxruntime(onnx: bytes, threads: int) -> Answer:
    """What the file answers to any number of tiles, on so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def answer(tiles: Tensor) -> Tensor:
        found = session.run(None, {name: tiles.float().contiguous().numpy()})[0]
        return torch.from_numpy(np.asarray(found, np.float32))

    return answer
