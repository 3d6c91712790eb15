"""Formats in 8-bit integers: what is rounded and what stays in float, what calibrates them, and what they answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch

from histill.artifacts.formats.made import Made
from histill.artifacts.formats.onnx_int8 import ONNX_INT8_NAME, make_onnx_int8, name_layers
from histill.artifacts.formats.openvino_int8 import make_openvino_int8
from histill.artifacts.formats.subject import Subject
from histill.artifacts.model_folder import ModelCard, build
from histill.artifacts.training_tiles import read_training_tiles
from histill.config.common import Storage
from histill.errors import InputError
from histill.models.fake_quantization import list_layers
from histill.tiles.manifest import Manifest, case_digests

pytestmark = pytest.mark.unit

STORAGE = Storage()
CARD = ModelCard(
    kind="classification", encoder="csat_tiny", decoder_channels=(), classes=("stroma", "tumour", "fat"),
    mean=(0.7, 0.5, 0.6), std=(0.2, 0.25, 0.15), tile_px=64, tile_mpp=0.5, size_px=64, tiles_digest="tiles",
    train_cases=(), histill="0",
)  # fmt: skip
SENSITIVE = "network.stages.1.blocks.0.mlp.fc2"


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A CSAT with a layer that cannot be rounded: each of its outputs has a huge weight on a unit that is always 0."""
    torch.manual_seed(3)
    model = build(CARD).eval()
    blocks: Any = model.get_submodule("network.stages.1.blocks.0.mlp")
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.02)
        blocks.fc1.weight[5], blocks.fc1.bias[5] = 0.0, -50.0  # after GELU: 0
        blocks.grn.bias[5] = 0.0
        blocks.fc2.weight[:, 5] = 500.0
    coarse = torch.randint(0, 256, (32, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return Subject(model, CARD, coarse.float().repeat_interleave(8, 2).repeat_interleave(8, 3))


@pytest.fixture(scope="module")
def made(subject: Subject) -> Made:
    return make_onnx_int8(subject)


def relative_error(subject: Subject, made: Made) -> float:
    """The norm of the change of the logits over that of what tells the tiles apart."""
    assert subject.training_tiles is not None
    with torch.inference_mode():
        expected = subject.model(subject.training_tiles)
    return float((made.answer(subject.training_tiles) - expected).norm() / (expected - expected.mean(0)).norm())


def test_every_layer_of_the_model_is_found_in_the_file(subject: Subject) -> None:
    layers = list_layers(subject.model)
    assert sorted(name for name in name_layers(subject.onnx).values() if name in layers) == sorted(layers)


def test_sensitive_layers_norms_and_attention_stay_in_float(subject: Subject, made: Made) -> None:
    assert made.rounding is not None
    assert made.rounding.float_layers[0] == SENSITIVE
    assert made.rounding.errors[SENSITIVE] == max(made.rounding.errors.values())
    graph = onnx.load_from_string(made.files[ONNX_INT8_NAME]).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    source = {output: node for node in graph.node for output in node.output}
    layers, rounded = name_layers(subject.onnx), set()
    for node in graph.node:
        by = {name: source[name] for name in node.input if name in source}
        restored = {name: each for name, each in by.items() if each.op_type == "DequantizeLinear"}
        weights = [each for each in restored.values() if each.input[0] in constants]
        if not weights:  # it may still read what a convolution before it has rounded
            continue
        rounded |= {layers[node.name]}
        assert constants[weights[0].input[0]].dtype == np.int8
        assert constants[weights[0].input[1]].size > 1, "one scale for a whole layer"
        assert source[node.input[0]].op_type == "DequantizeLinear", "an input that is not rounded"
    assert rounded == set(list_layers(subject.model)) - set(made.rounding.float_layers)


def test_the_file_is_smaller_and_answers_like_the_model(subject: Subject, made: Made) -> None:
    assert relative_error(subject, made) < 0.1
    assert len(made.files[ONNX_INT8_NAME]) < 0.7 * len(subject.onnx)
    alone = made.answer(subject.training_tiles[:1])  # type: ignore[index]
    torch.testing.assert_close(alone, made.answer(subject.training_tiles)[:1], atol=1e-3, rtol=1e-3)


def test_openvino_has_the_same_layers_and_answers_like_the_model(
    subject: Subject, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = []
    compile_model = openvino.Core.compile_model

    def compiled(*arguments: Any) -> Any:
        found = compile_model(*arguments)
        pinned.append(found.get_property("ENABLE_CPU_PINNING"))
        return found

    monkeypatch.setattr(openvino.Core, "compile_model", compiled)
    converted = make_openvino_int8(subject)
    assert pinned == [False, False], "workers of a node would share its first cores"
    assert list(converted.files) == ["model_int8.xml", "model_int8.bin"]
    assert made.rounding is not None
    assert converted.rounding is not None
    assert converted.rounding.float_layers == made.rounding.float_layers
    assert relative_error(subject, converted) < 0.1
    weights = sum(subject.model.get_submodule(name).weight.numel() for name in list_layers(subject.model))  # type: ignore[union-attr, operator]
    others = sum(value.numel() for value in subject.model.state_dict().values()) - weights
    kept = sum(subject.model.get_submodule(name).weight.numel() for name in made.rounding.float_layers)  # type: ignore[union-attr, operator]
    assert len(converted.files["model_int8.bin"]) < weights + 4 * (others + kept) + 100_000


def test_calibration_sees_training_tiles_and_never_held_out_ones(
    tmp_path: Path, tile_set: Callable[..., Manifest]
) -> None:
    tiles = tile_set(tmp_path / "tiles", tiles=24, cases=6, labels=True)
    cases = case_digests(tiles, "train")
    card = CARD.model_copy(update={"tiles_digest": tiles.header.digest, "train_cases": cases})
    seen = read_training_tiles(card, tiles, "test", 100, STORAGE)
    assert (seen.shape, seen.dtype) == ((16, 3, 64, 64), torch.uint8)
    assert len(read_training_tiles(card, tiles, "test", 8, STORAGE)) == 8
    everything = case_digests(tiles, "test") + cases
    leaking = card.model_copy(update={"train_cases": everything})
    again = read_training_tiles(leaking, tiles, "test", 100, STORAGE)
    np.testing.assert_array_equal(again, seen)
    with pytest.raises(InputError, match="tile set nowhere is neither beside the held-out tiles"):
        read_training_tiles(card.model_copy(update={"tiles_digest": "nowhere"}), tiles, "test", 8, STORAGE)
    with pytest.raises(InputError, match="has none that can be decoded"):
        read_training_tiles(card.model_copy(update={"train_cases": ("0" * 12,)}), tiles, "test", 8, STORAGE)
