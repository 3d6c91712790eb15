"""OpenVINO in a process that goes on to live."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

pytestmark = pytest.mark.unit

JOB = """
import signal, sys, threading
from pathlib import Path
import torch
from histill.artifacts.formats.run_openvino import run_openvino
answers = [run_openvino(Path(sys.argv[1]).read_bytes(), 1)]
assert answers[0](torch.full((1, 2), -1.0)).eq(0).all()
thread = threading.Thread(target=answers.clear)
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda *_: print("interrupted"))
signal.raise_signal(signal.SIGINT)
"""


def test_a_signal_is_answered_after_the_last_model_was_dropped_in_another_thread(tmp_path: Path) -> None:
    """Else the signal's stack, which OpenVINO's plugin has made and freed, would be gone: a segmentation fault."""
    shape = ["batch", 2]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    done = subprocess.run([sys.executable, "-c", JOB, str(path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
