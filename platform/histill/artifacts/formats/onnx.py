"""ONNX: one file that any ONNX runtime opens."""

import torch

from histill.artifacts.formats.made import Made
from histill.artifacts.formats.run_onnxruntime import run_onnxruntime
from histill.artifacts.formats.subject import Subject
from histill.artifacts.model_folder import ONNX_NAME


def make_onnx(subject: Subject) -> Made:
    """The file, run by ONNX Runtime on the CPU."""
    return Made({ONNX_NAME: subject.onnx}, run_onnxruntime(subject.onnx, torch.get_num_threads()))
