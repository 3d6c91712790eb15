"""ONNX teachers: they answer as the same network in torch, and what their card does not describe is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from histill.config.common import Storage
from histill.errors import InputError
from histill.teachers import onnx as onnx_teacher
from histill.teachers.onnx import OnnxTeacher

pytestmark = pytest.mark.unit

STORAGE = Storage()
CARD: dict[str, Any] = {
    "classes": ["background", "nucleus"],
    "tile_mpp": 0.5,
    "tile_px": 32,
    "size_px": 16,
    "mean": [0.7, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
    "output": "logits",
}
Side = int | str


def network(
    *,
    channels: int = 2,
    last: str | None = None,
    shape: tuple[Side, ...] = ("batch", 3, "height", "width"),
    stride: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """One 1x1 convolution of random weights, and the activation `last`."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(channels, 3, 1, 1)).astype(np.float32)
    bias = random.normal(size=channels).astype(np.float32)
    nodes = [helper.make_node("Conv", ["tiles", "weight", "bias"], ["z"], strides=[stride, stride])]
    if last is not None:
        nodes.append(helper.make_node(last, ["z"], ["answer"], **({"axis": 1} if last == "Softmax" else {})))
    return model_of(
        nodes,
        {"weight": weight, "bias": bias},
        inputs=[helper.make_tensor_value_info("tiles", TensorProto.FLOAT, shape)],
        outputs=["answer" if last else "z"],
    )


def model_of(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], inputs: list[Any], outputs: list[str]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "teacher",
        inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """`write(model, **changes of the card)`: an ONNX file with its card; returns its path."""

    def make(model: onnx.ModelProto, **changes: Any) -> str:
        (tmp_path / "nuclei.onnx").write_bytes(model.SerializeToString())
        card = {key: value for key, value in (CARD | changes).items() if value is not None}
        (tmp_path / "nuclei.json").write_text(json.dumps(card))
        return str(tmp_path / "nuclei.onnx")

    return make


def refused(uri: str) -> str:
    with pytest.raises(InputError) as caught:
        OnnxTeacher.load(uri, STORAGE)
    message = str(caught.value)
    assert "\n" not in message
    return message


def tiles(side: int, count: int = 3) -> Tensor:
    return torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def expected_z(given: Tensor, channels: int, side: int) -> np.ndarray:
    """The convolution's answer at `side`, by its definition, in float64."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(channels, 3, 1, 1)).astype(np.float32)[..., 0, 0].astype(float)
    bias = random.normal(size=channels).astype(np.float32).astype(float)
    pixels = given.numpy().astype(float)
    block = pixels.shape[-1] // side
    seen = pixels.reshape(len(pixels), 3, side, block, side, block).mean(axis=(3, 5))
    mean, std = (np.array(CARD[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    normalised = (seen / 255 - mean) / std
    return np.einsum("kc,bchw->bkhw", weight, normalised) + bias.reshape(1, -1, 1, 1)


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("channels", "classes"), [(2, ["background", "nucleus"]), (3, ["background", "a", "b"])])
@pytest.mark.parametrize("last", [None, "Softmax"])
def test_it_answers_what_the_network_says(
    write: Callable[..., str], channels: int, classes: list[str], last: str | None
) -> None:
    output = "probabilities" if last else "logits"
    uri = write(network(channels=channels, last=last), classes=classes, output=output, size_px=32)
    logits = OnnxTeacher.load(uri, STORAGE).respond(tiles(32))
    assert logits.dtype == torch.float32
    assert logits.shape == (3, channels, 32, 32)
    expected = expected_z(tiles(32), channels, 32)
    if last is None:
        np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(logits.softmax(1).numpy(), softmax(expected), atol=1e-5)


@pytest.mark.parametrize("last", [None, "Sigmoid"])
def test_a_single_channel_is_the_second_of_two_classes(write: Callable[..., str], last: str | None) -> None:
    uri = write(network(channels=1, last=last), output="probabilities" if last else "logits", size_px=32)
    logits = OnnxTeacher.load(uri, STORAGE).respond(tiles(32))
    z = expected_z(tiles(32), 1, 32)
    assert logits.shape == (3, 2, 32, 32)
    np.testing.assert_allclose((logits[:, 1:] - logits[:, :1]).numpy(), z, atol=2e-3)
    if last is None:
        assert (logits[:, 0] == 0).all()


def test_certain_probabilities_stay_finite(write: Callable[..., str]) -> None:
    model = network(channels=1, last="Sigmoid")
    for weight in model.graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(1000 * numpy_helper.to_array(weight), weight.name))
    logits = OnnxTeacher.load(write(model, output="probabilities"), STORAGE).respond(tiles(32))
    assert logits.isfinite().all()


@pytest.mark.parametrize("stride", [1, 4])
def test_tiles_and_windows_are_seen_at_the_cards_resolution(write: Callable[..., str], stride: int) -> None:
    teacher = OnnxTeacher.load(write(network(stride=stride)), STORAGE)  # tiles of 32 px at 16
    assert (teacher.sees(32), teacher.sees(16)) == (16, 8)
    for side in (32, 16):
        logits = teacher.respond(tiles(side))
        assert logits.shape == (3, 2, side, side)
        if stride == 1:
            z = torch.from_numpy(expected_z(tiles(side), 2, side // 2)).float()
            grown = torch.nn.functional.interpolate(z, size=side, mode="bilinear", align_corners=False)
            torch.testing.assert_close(logits, grown, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match=r"nuclei\.onnx sees tiles of 32 px at 16 px, .* of 17 px would have 8\.50 px"):
        teacher.respond(tiles(17))


def test_a_batch_frozen_at_one_is_asked_tile_by_tile(write: Callable[..., str]) -> None:
    free = OnnxTeacher.load(write(network()), STORAGE).respond(tiles(32))
    frozen = OnnxTeacher.load(write(network(shape=(1, 3, "height", "width"))), STORAGE).respond(tiles(32))
    torch.testing.assert_close(free, frozen)


def test_a_network_of_one_side_takes_whole_tiles_only(write: Callable[..., str]) -> None:
    teacher = OnnxTeacher.load(write(network(shape=("batch", 3, 16, 16))), STORAGE)
    assert teacher.respond(tiles(32)).shape == (3, 2, 32, 32)
    with pytest.raises(InputError, match=r"takes 16 px only and would see a tile or window of 16 px at 8"):
        teacher.sees(16)


def test_the_digest_is_of_file_and_card(write: Callable[..., str]) -> None:
    digests = [
        OnnxTeacher.load(write(model, **card), STORAGE).digest
        for model, card in (
            (network(), {}),
            (network(), {}),
            (network(seed=1), {}),
            (network(), {"size_px": 32}),
            (network(), {"mean": [0, 0, 0]}),
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_a_gpu_that_onnx_runtime_does_not_know_is_said(
    write: Callable[..., str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    teacher = OnnxTeacher.load(write(network()), STORAGE, gpu=True)
    assert teacher.session.get_providers() == ["CPUExecutionProvider"]
    assert "answers on the CPU: onnxruntime-gpu is not installed" in caplog.text
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert onnx_teacher._providers("uri", True) == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert onnx_teacher._providers("uri", False) == ["CPUExecutionProvider"]


def external(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """`model` with one tensor in another file."""
    tensor = model.graph.initializer[0]
    if where == "attribute":
        tensor = TensorProto(name="hidden", dims=[1], data_type=TensorProto.FLOAT)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    if where == "attribute":
        model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))
    return model


@pytest.mark.parametrize("where", ["initializer", "attribute"])
def test_weights_in_other_files_are_refused(
    write: Callable[..., str], tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(1000))
    monkeypatch.chdir(tmp_path)
    assert "in another file, which is not loaded; export it again" in refused(write(external(network(), where)))


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\x80\x04K\x01."], ids=["empty", "text", "pickle"])
def test_other_files_are_refused(write: Callable[..., str], data: bytes) -> None:
    uri = write(network())
    Path(uri).write_bytes(data)
    assert uri in refused(uri)


def test_a_truncated_file_is_refused(write: Callable[..., str]) -> None:
    uri = write(network())
    whole = Path(uri).read_bytes()
    Path(uri).write_bytes(whole[: len(whole) // 2])
    assert uri in refused(uri)


def test_an_operator_that_the_runtime_does_not_know_is_refused(write: Callable[..., str]) -> None:
    model = network()
    model.graph.node[0].op_type = "RunAnything"
    message = refused(write(model))
    assert "cannot be loaded; export it again" in message
    assert "RunAnything" in message


@pytest.mark.parametrize(
    ("model", "card", "said"),
    [
        (network(shape=(1, 4, "h", "w")), {}, "takes tensor(float) [1, 4, 'h', 'w']; float32 [batch, 3, 16, 16] was"),
        (network(shape=(8, 3, "h", "w")), {}, "takes tensor(float) [8, 3, 'h', 'w']"),
        (network(shape=("b", 3, 224, 224)), {}, "takes tensor(float) ['b', 3, 224, 224]; float32 [batch, 3, 16, 16]"),
        (network(channels=3), {}, "answers [2, 3, 16, 16] for 2 tiles of 16 px; [2, 2, side, side] was expected"),
        (network(channels=1), {"classes": ["a", "b", "c"]}, "for the classes a, b, c of its card"),
        (network(last="GlobalAveragePool"), {"classes": ["a", "b", "c"]}, "answers [2, 2, 1, 1]"),
        (network(last="Flatten"), {}, "answers [2, 512] for 2 tiles"),
        (network(last="Softmax"), {}, "answers probabilities and its card says output 'logits'; correct "),
        (network(), {"output": "probabilities"}, "answers logits and its card says output 'probabilities'"),
        (network(last="Log"), {}, "nan or infinity"),
    ],
)
def test_a_network_that_is_not_what_its_card_says(
    write: Callable[..., str], model: onnx.ModelProto, card: dict[str, Any], said: str
) -> None:
    uri = write(model, **card)
    message = refused(uri)
    assert said in message
    assert message.startswith(uri)


def test_a_network_that_only_promises_to_take_any_batch_is_refused(write: Callable[..., str]) -> None:
    side = np.array([1, 2, 16, 16])
    model = network()
    model.graph.initializer.append(numpy_helper.from_array(side, "shape"))
    model.graph.node.append(helper.make_node("Reshape", ["z", "shape"], ["answer"]))
    model.graph.output[0].name = "answer"
    assert "cannot answer 2 tiles of 16 px (" in refused(write(model))


def test_several_answers_are_refused(write: Callable[..., str]) -> None:
    model = network(last="Relu")
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert "has 1 inputs and 2 outputs (answer, z)" in refused(write(model))


def test_half_precision_is_refused(write: Callable[..., str]) -> None:
    model = network()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    for weight in model.graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    assert "takes tensor(float16)" in refused(write(model))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tile_mpp": None}, "tile_mpp: Field required; the card of an ONNX teacher has the keys classes, tile_mpp,"),
        ({"tile_mpp": -1}, "tile_mpp is -1: Input should be greater than 0"),
        ({"classes": ["nucleus"]}, "classes is ['nucleus']"),
        ({"output": "softmax"}, "output is 'softmax': Input should be 'logits' or 'probabilities'"),
        ({"colour": "blue"}, "colour is 'blue': Extra inputs are not permitted"),
        ({"std": [0.2, 0.0, 0.2]}, "std is [0.2, 0.0, 0.2]; three values above 0 were expected"),
        ({"mean": [0.5, 0.5]}, "mean.2: Field required"),
    ],
)
def test_a_card_of_another_form_is_refused(write: Callable[..., str], changes: dict[str, Any], said: str) -> None:
    message = refused(write(network(), **changes))
    assert "nuclei.json: " in message
    assert said in message


def test_a_card_that_is_no_json_is_refused(write: Callable[..., str], tmp_path: Path) -> None:
    uri = write(network())
    (tmp_path / "nuclei.json").write_text("{")
    assert "nuclei.json: Invalid JSON" in refused(uri)


def test_missing_files_are_named(write: Callable[..., str], tmp_path: Path) -> None:
    uri = write(network())
    (tmp_path / "nuclei.onnx").unlink()
    assert refused(uri) == f"{uri} is missing; set teacher.onnx to an .onnx file."
    (tmp_path / "nuclei.json").unlink()
    assert "nuclei.json is missing; an ONNX teacher needs this card beside it, with the keys classes" in refused(uri)
    assert "an .onnx file was expected" in refused(str(tmp_path))
