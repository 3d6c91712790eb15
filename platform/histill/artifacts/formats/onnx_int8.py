"""ONNX in 8-bit integers: the layers that hold most weights, rounded after a calibration on training tiles."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor

from histill.artifacts.formats.made import Made, Rounding
from histill.artifacts.formats.run_onnxruntime import run_onnxruntime
from histill.artifacts.formats.subject import INPUT, Subject, quiet_exporters
from histill.models.fake_quantization import choose_float_layers
from histill.storage.scratch import scratch_folder

ONNX_INT8_NAME = "model_int8.onnx"
MOST_ERROR = 0.1
"""How much quantization may change what tells tiles apart: a signal-to-noise ratio of 20 dB. The layers that take most
of it are kept in float."""
_SCOPES = "pkg.torch.onnx.name_scopes"
_LAYERS = ("Conv", "MatMul", "Gemm")
_BATCH = 8


def make_onnx_int8(subject: Subject) -> Made:
    """Static quantization in the QDQ form, by ONNX Runtime: int8 weights with a scale for each output channel, and
    uint8 activations with the ranges that they have for training tiles.

    Weights are in -64..64, which no CPU saturates (see `histill.models.fake_quantization`).
    Norms, attention, activation functions and small layers stay in float, and the layers of `choose_layers`.
    """
    kept = choose_layers(subject)
    data = quantize_onnx(subject, kept)
    answer, parent = (run_onnxruntime(each, torch.get_num_threads()) for each in (data, subject.onnx))
    return Made({ONNX_INT8_NAME: data}, answer, Rounding(parent, kept, subject.layer_errors))


def choose_layers(subject: Subject) -> tuple[str, ...]:
    """The layers to keep in float because of their errors, the worst first."""
    return choose_float_layers(subject.layer_errors, MOST_ERROR)


def quantize_onnx(subject: Subject, kept: Collection[str]) -> bytes:
    """The ONNX file with every layer of `list_layers` but the `kept` ones quantized."""
    assert subject.training_tiles is not None
    rounded = subject.layer_errors.keys() - set(kept)
    nodes = [node for node, layer in name_layers(subject.onnx).items() if layer in rounded]
    return _quantize(subject.onnx, nodes, subject.training_tiles) if nodes else subject.onnx


def name_layers(data: bytes) -> Mapping[str, str]:
    """For each convolution and matrix product of a file of `Subject.onnx`, by the node's name, the layer it comes from.

    Products of two activations, as in attention, come from none and are left out; those of other constants have the
    name of the module that makes them.
    """
    graph = onnx.load_from_string(data).graph
    constants = {tensor.name for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type in _LAYERS and node.input[1] in constants:
            scopes = next((each.value for each in node.metadata_props if each.key == _SCOPES), "[]")
            names = [name.strip(" '\"") for name in scopes.strip("[]").split(",")]
            found[node.name] = names[-2] if len(names) > 1 else ""
    return found


def _quantize(data: bytes, nodes: list[str], tiles: Tensor) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Tiles(CalibrationDataReader):
        """The training tiles in batches, as the quantizer asks for them."""

        def __init__(self) -> None:
            self._left: Iterator[Tensor] = iter(torch.split(tiles, _BATCH))

        def get_next(self) -> dict[str, object] | None:
            batch = next(self._left, None)
            return None if batch is None else {INPUT: batch.numpy()}

    with quiet_exporters(), scratch_folder() as folder:
        before, after = Path(folder, "float.onnx"), Path(folder, ONNX_INT8_NAME)
        before.write_bytes(data)
        quantize_static(
            before, after, Tiles(), quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=list(_LAYERS),
            nodes_to_quantize=nodes, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=True,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},  # only convolutions need it
        )  # fmt: skip
        return _strip(after)


def _strip(path: Path) -> bytes:
    """The file without what only debuggers read: where nodes come from, and the shapes of what is between them."""
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
    del model.graph.value_info[:]
    return model.SerializeToString()
