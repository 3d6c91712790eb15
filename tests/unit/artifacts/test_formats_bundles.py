"""Bundles for timm, smp, WSInfer and QuPath: each is opened by its own library and answers like the model."""

import io
import json
import os
import pickletools
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from PIL import Image
from safetensors.numpy import save_file
from timm.data import resolve_model_data_config
from torchvision import transforms
from wsinfer_zoo.client import ModelConfiguration

from histill.artifacts.formats.export import export_formats
from histill.artifacts.formats.made import Export
from histill.artifacts.formats.wsinfer import _find_constants, trace
from histill.artifacts.model_folder import ModelCard, build

pytestmark = pytest.mark.unit

CLASSIFIER = ModelCard(
    kind="classification", encoder="csat_tiny", decoder_channels=(), classes=("stroma", "tumour", "fat"),
    mean=(0.7, 0.5, 0.6), std=(0.2, 0.25, 0.15), tile_px=64, tile_mpp=0.5, size_px=64, tiles_digest="tiles",
    train_cases=(), histill="0",
)  # fmt: skip
SEGMENTER = CLASSIFIER.model_copy(update={"kind": "segmentation", "decoder_channels": (16, 16, 8, 8, 8)})
ENCODER = CLASSIFIER.model_copy(update={"kind": "encoder", "classes": (), "width": 64})


def draw_tiles(side: int) -> np.ndarray:
    """Smooth tiles, uint8 [3, S, S, 3], so that resizing by another library changes little."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC)) for each in noise]
    )


def export(card: ModelCard, *formats: Any) -> tuple[torch.nn.Module, tuple[Export, ...]]:
    """A model of `card` with weights unlike any library's own, and what is made of it."""
    torch.manual_seed(3)
    model = build(card).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.02)
    pixels, cut = draw_tiles(card.tile_px), []
    for tile in pixels:
        Image.fromarray(tile).save(file := io.BytesIO(), "PNG")
        cut.append(file.getvalue())
    seen = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    seen = torch.nn.functional.adaptive_avg_pool2d(seen.float(), card.size_px)
    return model, export_formats(model, card, formats, seen, cut)


def write(contents: Mapping[str, bytes], folder: Path) -> None:
    for path, data in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


@torch.inference_mode()
def answer(network: Any, card: ModelCard, tiles: torch.Tensor) -> torch.Tensor:
    """What a bundle's network says of pixels 0..255, normalized as its card says."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (card.mean, card.std))
    return network.eval()((tiles / 255 - mean) / std)


@pytest.mark.parametrize("card", [CLASSIFIER, ENCODER], ids=["classifier", "encoder"])
def test_timm_opens_its_folder_once_histill_models_is_imported(card: ModelCard, tmp_path: Path) -> None:
    model, (made,) = export(card, "timm")
    assert made.listed.difference is not None
    assert made.listed.difference < 1e-4
    write(made.contents, tmp_path)
    network = timm.create_model(f"local-dir:{tmp_path}/timm", pretrained=True)
    tiles = torch.rand(2, 3, 64, 64) * 255
    with torch.inference_mode():
        assert torch.allclose(answer(network, card, tiles), model(tiles), atol=1e-5)
    assert network.num_classes == len(card.classes)
    stated = resolve_model_data_config(network)
    assert {key: stated[key] for key in ("input_size", "mean", "std", "crop_pct")} == {
        "input_size": [3, 64, 64], "mean": list(card.mean), "std": list(card.std), "crop_pct": 1.0,
    }  # fmt: skip


def test_a_timm_folder_says_nothing_of_timms_own_weights() -> None:
    card = CLASSIFIER.model_copy(update={"encoder": "resnet18", "tile_px": 128})
    _, (made,) = export(card, "timm")
    config = json.loads(made.contents["timm/config.json"])
    assert config["label_names"] == list(card.classes)
    assert config["pretrained_cfg"]["interpolation"] == "box"  # tiles of 128 px are seen at 64
    assert not {"license", "tag", "origin_url", "paper_ids"} & config["pretrained_cfg"].keys()


def test_smp_opens_its_folder(tmp_path: Path) -> None:
    model, (made,) = export(SEGMENTER, "smp")
    assert made.listed.difference is not None
    assert made.listed.difference < 1e-4
    assert set(made.contents) == {"smp/model.safetensors", "smp/config.json"}  # smp's card states smp's license
    write(made.contents, tmp_path)
    network = smp.from_pretrained(str(tmp_path / "smp"))
    assert isinstance(network, smp.Unet)
    tiles = torch.rand(2, 3, 64, 64) * 255
    with torch.inference_mode():
        assert torch.allclose(answer(network, SEGMENTER, tiles), model(tiles), atol=1e-5)


@pytest.mark.parametrize("size_px", [128, 64])
def test_a_wsinfer_bundle_is_valid_and_answers_like_the_model(size_px: int, tmp_path: Path) -> None:
    """Read as WSInfer does: the transforms of its `config.json`, by torchvision, then the archive, then a softmax."""
    card = CLASSIFIER.model_copy(update={"tile_px": 128, "size_px": size_px})
    model, (made,) = export(card, "wsinfer")
    write(made.contents, tmp_path)
    assert {path.name for path in (tmp_path / "wsinfer").iterdir()} == {
        "torchscript_model.pt", "config.json", "README.md"
    }  # fmt: skip
    config = ModelConfiguration.from_dict(json.loads((tmp_path / "wsinfer/config.json").read_text()))
    assert (config.patch_size_pixels, config.spacing_um_px, config.class_names) == (128, 0.5, list(card.classes))
    assert [each.name for each in config.transform] == ["Resize", "ToTensor", "Normalize"]
    prepare = transforms.Compose(
        [getattr(transforms, each.name)(**(each.arguments or {})) for each in config.transform]
    )
    network = torch.jit.load(tmp_path / "wsinfer/torchscript_model.pt")
    tiles = draw_tiles(128)
    prepared = torch.stack([prepare(Image.fromarray(tile)) for tile in tiles])
    pixels = torch.from_numpy(tiles.transpose(0, 3, 1, 2).copy()).float()
    with torch.inference_mode():
        expected = model(torch.nn.functional.adaptive_avg_pool2d(pixels, size_px)).softmax(1)
        for count in (1, 2, 3):
            said = network(prepared[:count]).softmax(1)
            assert torch.allclose(said, expected[:count], atol=1e-5 if size_px == 128 else 5e-3)
    assert float(expected.std(0).max()) > 0.01  # the tiles are told apart
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    seen = transforms.Compose(prepare.transforms[:2])(Image.fromarray(noise))
    area = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(noise).permute(2, 0, 1).float(), size_px)
    assert float((255 * seen - area).abs().max()) <= 1  # the rounding of pixels


def test_a_torchscript_archive_holds_no_code_for_pickle_no_path_and_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("an archive with room for pickled objects was loaded")

    monkeypatch.setattr(torch.jit, "load", load)
    _, (made,) = export(CLASSIFIER, "wsinfer")
    with zipfile.ZipFile(io.BytesIO(made.contents["wsinfer/torchscript_model.pt"])) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    here = os.path.dirname(timm.__file__).encode()
    assert [name for name, data in parts.items() if here in data or os.getcwd().encode() in data] == []
    named = {
        str(argument)
        for name, data in parts.items()
        if name.endswith("pkl")
        for opcode, argument, _ in pickletools.genops(data)
        if opcode.name in {"GLOBAL", "INST", "STACK_GLOBAL"}
    }
    outside = {each for each in named if not each.startswith("__torch__.")}
    assert outside <= {
        "collections OrderedDict", "torch FloatStorage", "torch LongStorage", "torch._utils _rebuild_tensor_v2",
        "torch.jit._pickle build_intlist", "torch.jit._pickle restore_type_tag",
    }  # fmt: skip


class Scaled(torch.nn.Module):
    """Multiplies by numbers, which a trace holds as float64 first."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return 0.5 * tiles / 3.0


def test_a_constant_that_was_float64_is_float32_in_its_value_and_in_its_type() -> None:
    traced = trace(Scaled(), 4)
    constants = [node for node in _find_constants(traced) if node.kindOf("value") == "t"]
    assert [node.t("value").dtype for node in constants] == [torch.float32] * 2
    assert [node.output().type().scalarType() for node in constants] == ["Float"] * 2
    tiles = torch.rand(3, 3, 4, 4)
    for _ in range(3):  # the graph is optimized after its first runs, by what its types say
        torch.testing.assert_close(traced(tiles), tiles / 6)


def test_bundles_are_opened_without_histill(tmp_path: Path) -> None:
    card = CLASSIFIER.model_copy(update={"encoder": "resnet10t"})
    model, made = export(card, "timm", "wsinfer")
    for each in made:
        write(each.contents, tmp_path)
    tiles = torch.rand(2, 3, 64, 64) * 255
    with torch.inference_mode():
        expected = model(tiles)
    save_file({"tiles": np.asarray(tiles), "expected": np.asarray(expected)}, tmp_path / "expected.safetensors")
    program = f"""
import sys, timm, torch
from safetensors.torch import load_file
given = load_file("expected.safetensors")
mean, std = torch.tensor({card.mean}).view(3, 1, 1), torch.tensor({card.std}).view(3, 1, 1)
for network in (timm.create_model("local-dir:timm", pretrained=True), torch.jit.load("wsinfer/torchscript_model.pt")):
    with torch.inference_mode():
        print(float((network.eval()((given["tiles"] / 255 - mean) / std) - given["expected"]).abs().max()) < 1e-4)
print("histill" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "True", "False"], done.stderr


@pytest.mark.parametrize(
    ("card", "format_", "why"),
    [
        (SEGMENTER, "timm", "ask for smp"),
        (CLASSIFIER, "smp", "ask for timm"),
        (SEGMENTER, "wsinfer", "kind segmentation"),
        (ENCODER, "wsinfer", "kind encoder"),
        (CLASSIFIER.model_copy(update={"multi_label": True}), "wsinfer", "applies a softmax"),
        (
            CLASSIFIER.model_copy(update={"shapes": {"network.head.fc.weight": (3, 64)}}),
            "timm",
            "is pruned; ask for onnx",
        ),
        (
            SEGMENTER.model_copy(update={"shapes": {"network.segmentation_head.0.weight": (3, 8, 3, 3)}}),
            "smp",
            "is pruned; ask for onnx",
        ),
    ],
)
def test_a_bundle_that_a_model_cannot_have_is_skipped_with_its_reason(card: ModelCard, format_: str, why: str) -> None:
    _, (made,) = export(card, format_)
    assert why in made.listed.skipped
    assert made.contents == {}
