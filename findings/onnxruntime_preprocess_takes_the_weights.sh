#!/usr/bin/env bash
# Preparing a model in memory for quantization leaves the caller's own model without weights, if symbolic shapes are skipped.
#
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6, sympy 1.14.0.
# Expected: quant_pre_process takes a path or a ModelProto and writes the prepared model to another path; what it was given is
#   the caller's and stays as it is, as it does of a path.
# Seen: by default the ModelProto is unchanged. With skip_symbolic_shape=True (its docstring says that these shapes help transformers most)
#   the call succeeds and the file that it writes is sound, but every initializer of the caller's ModelProto then
#   refers to a file in a temporary folder that has been deleted: its bytes are gone, onnxruntime refuses to load the model,
#   and a second format made from it, or the float model saved after the quantized one, is lost.
# Who it hurts: pipelines that export once and make several formats of the model in memory.
# Way round: pass a copy, `ModelProto.FromString(model.SerializeToString())`, or a path.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 sympy==1.14.0 \
    2>"$work/pip.log" || { cat "$work/pip.log"; exit 2; }
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.shape_inference import quant_pre_process


def convolution():
    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "weight")
    node = helper.make_node("Conv", ["pixels", "weight"], ["maps"], pads=[1, 1, 1, 1])
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, 32, 32])
    maps = helper.make_tensor_value_info("maps", TensorProto.FLOAT, [1, 8, 32, 32])
    graph = helper.make_graph([node], "one convolution", [pixels], [maps], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def loads(model):
    try:
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as error:  # of onnxruntime's own kinds
        return f"no: {str(error).splitlines()[0][:110]}"
    return "yes"


seen = {}
for options in ({}, {"skip_symbolic_shape": True}):
    model = convolution()
    before = model.SerializeToString()
    quant_pre_process(model, "prepared.onnx", **options)
    kept, usable = model.SerializeToString() == before, loads(model.SerializeToString())
    seen[bool(options)] = (kept, usable == "yes", loads("prepared.onnx") == "yes", len(model.graph.initializer[0].raw_data))
    print(f"{options or 'by default'}: the caller's model is unchanged: {kept}; loads: {usable}; "
          f"bytes of its weight: {seen[bool(options)][-1]}; the written file loads: {seen[bool(options)][2]}")
as_described = seen == {False: (True, True, True, 864), True: (False, False, True, 0)}
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
