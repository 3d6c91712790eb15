"""ONNX teachers: same outputs as the network in torch; graphs that do not match their card are refused."""

import json
import os
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
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
from histill.teachers import onnx_network, onnx_weights
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
    """The convolution's output at `side`, from its definition, in float64."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(channels, 3, 1, 1)).astype(np.float32)[..., 0, 0].astype(float)
    bias = random.normal(size=channels).astype(np.float32).astype(float)
    pixels = given.numpy().astype(float)
    block = pixels.shape[-1] // side
    seen = pixels.reshape(len(pixels), 3, side, block, side, block).mean(axis=(3, 5))
    mean, std = (np.array(CARD[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    normalized = (seen / 255 - mean) / std
    return np.einsum("kc,bchw->bkhw", weight, normalized) + bias.reshape(1, -1, 1, 1)


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
    assert teacher.network.session.get_providers() == ["CPUExecutionProvider"]
    assert "answers on the CPU: onnxruntime-gpu is not installed" in caplog.text
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert onnx_network._providers("uri", True) == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert onnx_network._providers("uri", False) == ["CPUExecutionProvider"]


DATA = "nuclei.onnx.data"


def external(model: onnx.ModelProto, *entries: tuple[str, Any]) -> onnx.ModelProto:
    """`model` with its first weights declared as external data."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries:
        tensor.external_data.add(key=key, value=str(value))
    return model


@pytest.fixture
def write_apart(write: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    """`write_apart(seed)`: a teacher with weights and biases in `nuclei.onnx.data`; returns the graph's path."""

    def make(seed: int = 0, **changes: Any) -> str:
        model = network(seed=seed)
        parts = [numpy_helper.to_array(weight).tobytes() for weight in model.graph.initializer]
        for position, weight in enumerate(model.graph.initializer):
            weight.ClearField("raw_data")
            weight.data_location = TensorProto.EXTERNAL
            offset = sum(len(part) + 8 for part in parts[:position])
            for key, value in (("location", DATA), ("offset", offset), ("length", len(parts[position]))):
                weight.external_data.add(key=key, value=str(value))
        (tmp_path / DATA).write_bytes(bytes(8).join(parts))
        return write(model, **changes)

    return make


def test_weights_beside_the_graph_answer_as_those_inside(
    write: Callable[..., str], write_apart: Callable[..., str]
) -> None:
    apart = OnnxTeacher.load(write_apart(), STORAGE).respond(tiles(32))
    inside = OnnxTeacher.load(write(network()), STORAGE).respond(tiles(32))
    torch.testing.assert_close(apart, inside, atol=0, rtol=0)
    whole = OnnxTeacher.load(write_apart(size_px=32), STORAGE).respond(tiles(32))
    np.testing.assert_allclose(whole.numpy(), expected_z(tiles(32), 2, 32), atol=1e-4)


def test_what_torchs_exporter_writes_by_default_is_a_teacher(write: Callable[..., str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 2, 1).eval()
    write(network())  # for the card
    shapes = ({0: torch.export.Dim("batch")},)
    example = torch.zeros(2, 3, 16, 16)
    torch.onnx.export(model, (example,), tmp_path / "nuclei.onnx", dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert (tmp_path / DATA).is_file()
    (tmp_path / "nuclei.json").write_text(json.dumps(CARD | {"size_px": 16, "tile_px": 16}))
    teacher = OnnxTeacher.load(str(tmp_path / "nuclei.onnx"), STORAGE)
    normalized = (tiles(16, 2) / 255 - torch.tensor(CARD["mean"]).view(3, 1, 1)) / torch.tensor(CARD["std"]).view(
        3, 1, 1
    )
    torch.testing.assert_close(teacher.respond(tiles(16, 2)), model(normalized).detach(), atol=1e-5, rtol=0)


def test_a_published_model_with_weights_beside_it_is_a_teacher(
    tmp_path: Path, draw_tile: Callable[[int, int], tuple[np.ndarray, np.ndarray]]
) -> None:
    """SHELL, a segmenter of epithelium and stroma (MIT license), as its package brings it.

    Its channels are epithelium, stroma and background; it was trained on separated stains rather than on RGB, so what
    is compared here are its answers, not what they are worth.
    """
    try:
        package = distribution("lavlab-shell")
    except PackageNotFoundError:
        pytest.skip("lavlab-shell is not installed; `pip install --no-deps lavlab-shell`, whose wheel has 6 MB.")
    for name in ("model_v1.onnx", "model_v1.onnx.data"):
        shutil.copy(str(package.locate_file(f"shell/weights/{name}")), tmp_path / name)
    card = {"classes": ["epithelium", "stroma", "background"], "tile_mpp": 1.0, "tile_px": 128, "size_px": 128}
    card |= {"mean": [0, 0, 0], "std": [1, 1, 1], "output": "logits"}
    (tmp_path / "model_v1.json").write_text(json.dumps(card))
    uri = str(tmp_path / "model_v1.onnx")
    teacher = OnnxTeacher.load(uri, STORAGE)
    shown = torch.from_numpy(np.stack([draw_tile(seed, 128)[0] for seed in (1, 2)])).permute(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(uri, providers=["CPUExecutionProvider"])  # finds the weights by itself
    expected = session.run(None, {"input": (shown.numpy() / np.float32(255)).astype(np.float32)})[0]
    logits = teacher.respond(shown)
    assert logits.shape == (2, 3, 128, 128)
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-3)
    assert np.ptp(expected) > 0.1  # the output varies by position


def test_the_digest_is_of_the_weights_too(write_apart: Callable[..., str], tmp_path: Path) -> None:
    uri = write_apart()
    first = OnnxTeacher.load(uri, STORAGE).digest
    assert OnnxTeacher.load(uri, STORAGE).digest == first
    graph = Path(uri).read_bytes()
    write_apart(seed=1)
    assert Path(uri).read_bytes() == graph  # the same graph, other weights
    assert OnnxTeacher.load(uri, STORAGE).digest != first


@pytest.mark.parametrize(
    "location",
    [
        *(
            "../nuclei.onnx.data",
            "/etc/passwd",
            "./nuclei.onnx.data",
            "sub/nuclei.onnx.data",
            "..",
            ".",
            "",
            "a\\b",
            "a\nb",
        ),
        *(
            "s3://bucket/x",
            "file:///etc/passwd",
            "C:\\x",
            "*/_ORT_MEM_ADDR_/*",
            "nuclei.onnx.data/",
            "a\x00b",
            "x" * 256,
        ),
    ],
)
def test_weights_under_any_other_name_are_refused(
    write: Callable[..., str], tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / DATA).write_bytes(bytes(1000))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / DATA).write_bytes(bytes(1000))
    monkeypatch.chdir(tmp_path)
    message = refused(write(external(network(), ("location", location))))
    assert "in another file, " in message
    assert "which is not loaded, since it is no plain name in the same folder; export it again" in message


@pytest.mark.parametrize(
    "entries",
    [
        [("location", DATA), ("location", "/etc/passwd")],
        [("location", "/etc/passwd"), ("location", DATA)],
        [("location", DATA), ("offset", -8)],
        [("location", DATA), ("offset", "0x8")],
        [("location", DATA), ("length", "1e3")],
        [("location", DATA), ("offset", "9" * 30)],
        [("location", DATA), ("basepath", "/etc")],
    ],
    ids=str,
)
def test_an_unsound_word_on_where_weights_lie_is_refused(
    write: Callable[..., str], tmp_path: Path, entries: list[tuple[str, Any]]
) -> None:
    (tmp_path / DATA).write_bytes(bytes(1000))
    assert "does not say validly where the weights 'weight' are stored" in refused(write(external(network(), *entries)))


@pytest.mark.parametrize(("offset", "length"), [(0, 25), (1, 24), (24, 24), (10**17, 24), (0, None)])
def test_weights_beyond_the_files_end_are_refused(
    write: Callable[..., str], tmp_path: Path, offset: int, length: int | None
) -> None:
    (tmp_path / DATA).write_bytes(bytes(23 if length is None else 24))  # of 2 x 3 float32
    entries = [("location", DATA), ("offset", offset), *([] if length is None else [("length", length)])]
    said = f"bytes, and {tmp_path}/nuclei.onnx looks for the weights 'weight' at {offset} to {offset + (length or 24)}"
    assert said in refused(write(external(network(), *entries)))


def test_weights_of_another_length_than_their_shape_are_refused(write: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / DATA).write_bytes(bytes(1000))
    assert "cannot be loaded" in refused(write(external(network(), ("location", DATA), ("length", 12))))


def test_a_missing_file_of_weights_is_named(write_apart: Callable[..., str], tmp_path: Path) -> None:
    uri = write_apart()
    (tmp_path / DATA).unlink()
    assert refused(uri) == f"{tmp_path}/{DATA} is missing, where {uri} keeps its weights; copy it there as well."


def test_weights_do_not_lead_out_of_the_folder(write_apart: Callable[..., str], tmp_path: Path) -> None:
    uri = write_apart()
    inside, outside = tmp_path / "blob", tmp_path.parent / f"{tmp_path.name}-outside"
    (tmp_path / DATA).rename(outside)
    (tmp_path / DATA).symlink_to(outside)
    assert "leads out of its folder" in refused(uri)
    outside.rename(inside)
    (tmp_path / DATA).unlink()
    (tmp_path / DATA).symlink_to("blob")  # as in model caches
    assert OnnxTeacher.load(uri, STORAGE).outputs.classes == tuple(CARD["classes"])
    inside.unlink()
    os.mkfifo(inside)
    assert "is no file with weights" in refused(uri)


def test_a_folder_that_is_a_link_is_as_good(write_apart: Callable[..., str], tmp_path: Path) -> None:
    write_apart()
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    assert OnnxTeacher.load(str(link / "nuclei.onnx"), STORAGE).outputs.dense


def test_too_many_bytes_of_weights_are_refused(
    write_apart: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = write_apart()
    monkeypatch.setattr(onnx_weights, "MOST_BYTES", 39)
    assert "has 40 bytes, and 39 are the most that are loaded" in refused(uri)


def test_weights_in_several_files_or_of_a_node_are_refused(write: Callable[..., str], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(bytes(1000))
    several = external(network(), ("location", "one"))
    several.graph.initializer.reverse()
    assert "keeps its weights in 2 other files" in refused(write(external(several, ("location", "two"))))
    hidden = TensorProto(name="hidden", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="one")
    model = network()
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=hidden))
    assert "'hidden' of a node in another file, which is not loaded; export it again" in refused(write(model))


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
        ({"tile_mpp": None}, "(tile_mpp: Field required); it has the keys classes, tile_mpp,"),
        ({"tile_mpp": -1}, "tile_mpp is -1: Input should be greater than 0"),
        ({"classes": ["nucleus"]}, "classes is ['nucleus']"),
        ({"output": "softmax"}, "output is 'softmax': Input should be 'logits' or 'probabilities'"),
        ({"color": "blue"}, "color is 'blue': Extra inputs are not permitted"),
        ({"std": [0.2, 0.0, 0.2]}, "std.1 is 0.0: Input should be greater than 0"),
        ({"mean": [0.5, 0.5]}, "mean.2: Field required"),
    ],
)
def test_a_card_of_another_form_is_refused(write: Callable[..., str], changes: dict[str, Any], said: str) -> None:
    message = refused(write(network(), **changes))
    assert "nuclei.json is not the card of an ONNX teacher" in message
    assert said in message


def test_a_card_that_is_no_json_is_refused(write: Callable[..., str], tmp_path: Path) -> None:
    uri = write(network())
    (tmp_path / "nuclei.json").write_text("{")
    assert "nuclei.json is not the card of an ONNX teacher of this version (Invalid JSON" in refused(uri)


def test_missing_files_are_named(write: Callable[..., str], tmp_path: Path) -> None:
    uri = write(network())
    (tmp_path / "nuclei.onnx").unlink()
    assert refused(uri) == f"{uri} is missing; set teacher.onnx to an .onnx file."
    (tmp_path / "nuclei.json").unlink()
    assert "nuclei.json is missing, the card that an ONNX teacher needs; it has the keys classes" in refused(uri)
    assert "an .onnx file was expected" in refused(str(tmp_path))
