"""OpenVINO's form in 8-bit integers: `model_int8.xml` with the graph, and `model_int8.bin` with the weights.

It is the model of `onnx_int8.py`, whose roundings OpenVINO turns into its own: both formats keep the same layers in
float and have the same ranges.
"""

from pathlib import Path

import torch

from histill.artifacts.formats.made import Made, Rounding
from histill.artifacts.formats.onnx_int8 import choose_layers, quantize_onnx
from histill.artifacts.formats.run_openvino import open_core, run_openvino
from histill.artifacts.formats.subject import Subject
from histill.storage.scratch import scratch_folder

GRAPH_NAME = "model_int8.xml"


def make_openvino_int8(subject: Subject) -> Made:
    """The two files, run by OpenVINO on the CPU."""
    import openvino

    kept = choose_layers(subject)
    with scratch_folder() as folder:
        graph = Path(folder, GRAPH_NAME)
        rounded = open_core().read_model(quantize_onnx(subject, kept))
        openvino.save_model(rounded, graph, compress_to_fp16=False)
        files = {path.name: path.read_bytes() for path in (graph, graph.with_suffix(".bin"))}
    (xml, weights), threads = files.values(), torch.get_num_threads()
    answer, parent = run_openvino(xml, threads, weights=weights), run_openvino(subject.onnx, threads)
    return Made(files, answer, Rounding(parent, kept, subject.layer_errors))
