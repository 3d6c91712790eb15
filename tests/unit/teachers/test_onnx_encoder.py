"""Encoders as ONNX files: they answer as their network does, and what their card does not describe is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from histill.config.common import Storage
from histill.config.common import Teacher as TeacherConfig
from histill.config.load import validate
from histill.errors import InputError
from histill.licenses import License
from histill.teachers.onnx_encoder import OnnxEncoder
from histill.teachers.teacher import load_teacher
from histill.testing.teachers import check_teacher

pytestmark = pytest.mark.unit

STORAGE = Storage()
WEIGHT = np.random.default_rng(0).normal(size=(7, 3, 1, 1)).astype(np.float32)
CARD: dict[str, Any] = {
    "width": 7, "tile_mpp": 0.5, "tile_px": 32, "size_px": 16, "mean": [0.7, 0.5, 0.6], "std": [0.2, 0.25, 0.3],
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """`write(pool=True, **changes of the card)`: the mean over pixels of a 1x1 convolution, with its card."""

    def make(*, pool: bool = True, **changes: Any) -> str:
        nodes = [helper.make_node("Conv", ["tiles", "weight"], ["map"])]
        if pool:
            nodes += [helper.make_node("GlobalAveragePool", ["map"], ["mean"])]
            nodes += [helper.make_node("Flatten", ["mean"], ["answer"])]
        graph = helper.make_graph(
            nodes,
            "encoder",
            [helper.make_tensor_value_info("tiles", TensorProto.FLOAT, ("batch", 3, "height", "width"))],
            [helper.make_tensor_value_info("answer" if pool else "map", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(WEIGHT, "weight")],
        )
        path = tmp_path / "encoder.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        (tmp_path / "encoder.json").write_text(json.dumps({k: v for k, v in (CARD | changes).items() if v is not None}))
        return str(path)

    return make


def tiles(side: int) -> torch.Tensor:
    return torch.randint(256, (3, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def refused(uri: str) -> str:
    with pytest.raises(InputError) as caught:
        OnnxEncoder.load(uri, STORAGE)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_it_answers_what_the_network_says(write: Callable[..., str]) -> None:
    teacher = OnnxEncoder.load(write(), STORAGE)
    check_teacher(teacher, tiles(32))
    assert (teacher.outputs.kind, teacher.outputs.width, teacher.sees(32), teacher.sees(16)) == ("encoder", 7, 16, 8)
    means = tiles(32).numpy().astype(float).mean(axis=(2, 3)) / 255  # which resizing keeps
    expected = (means - CARD["mean"]) / CARD["std"] @ WEIGHT[..., 0, 0].T
    np.testing.assert_allclose(teacher.respond(tiles(32)).numpy(), expected, atol=1e-5)


def test_the_configured_teacher_is_this_one(write: Callable[..., str]) -> None:
    terms = {"name": "CC-BY-NC-4.0", "commercial": False, "source": "https://creativecommons.org/licenses/by-nc/4.0/"}
    uri = write(license=terms)
    config = validate(TeacherConfig, {"onnx_encoder": uri}, "the test")
    teacher = load_teacher(config, 0.5, STORAGE)
    assert teacher.digest == OnnxEncoder.load(uri, STORAGE).digest
    assert OnnxEncoder.load(uri, STORAGE).license == License(**terms)
    silent = OnnxEncoder.load(write(), STORAGE)
    assert (silent.license, silent.digest) == (None, teacher.digest)  # terms change no answer
    with pytest.raises(InputError, match=r"was trained on tiles of 0\.5 um/px and the tile set has 1;"):
        load_teacher(config, 1.0, STORAGE)


def test_what_is_no_embedding_is_refused(write: Callable[..., str]) -> None:
    uri = write(width=8)
    assert refused(uri) == (
        f"{uri} answers [2, 7] for 2 tiles of 16 px; [2, 8] was expected, embeddings of its card's width: correct "
        "that, or export the network without what follows them."
    )
    assert "answers [2, 7, 16, 16] for 2 tiles of 16 px; [2, 7] was expected" in refused(write(pool=False))


def test_a_card_of_another_form_is_refused(write: Callable[..., str], tmp_path: Path) -> None:
    for changes in ({"width": None}, {"width": 0}, {"classes": ["a", "b"]}, {"std": [0, 1, 1]}):
        assert "encoder.json is not the card of an ONNX encoder of this version (" in refused(write(**changes))
    uri = write()
    (tmp_path / "encoder.json").unlink()
    assert "encoder.json is missing, the card that an ONNX encoder needs; it has the keys width, " in refused(uri)
    assert refused(f"{tmp_path}/encoder.pt").startswith(f"teacher.onnx_encoder is {tmp_path}/encoder.pt; an .onnx file")
    (tmp_path / "encoder.json").write_text(json.dumps(CARD))
    Path(uri).unlink()
    assert refused(uri) == f"{uri} is missing; set teacher.onnx_encoder to an .onnx file."
