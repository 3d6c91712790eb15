"""Exported formats: what is made by default, what only on request, and that it answers like the model."""

import io
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from histill.artifacts.formats.export import check_packages, export_formats
from histill.artifacts.formats.made import Export
from histill.artifacts.formats.table import FORMATS, Format
from histill.artifacts.model_folder import ModelCard, build
from histill.config.load import validate
from histill.config.promote_model import PromoteConfig
from histill.errors import InputError

pytestmark = pytest.mark.unit

CLASSIFIER = ModelCard(
    kind="classification", encoder="resnet_gn", decoder_channels=(), classes=("stroma", "tumour", "fat"),
    mean=(0.7, 0.5, 0.6), std=(0.2, 0.25, 0.15), tile_px=64, tile_mpp=0.5, size_px=64, tiles_digest="tiles",
    train_cases=(), histill="0",
)  # fmt: skip


def draw_tiles(count: int = 3, side: int = 64) -> tuple[torch.Tensor, list[bytes]]:
    """Tiles of noise, uint8 [N, 3, S, S], and each as a PNG."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    cut = []
    for tile in pixels:
        Image.fromarray(tile).save(file := io.BytesIO(), "PNG")
        cut.append(file.getvalue())
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), cut


def make_model(card: ModelCard) -> torch.nn.Module:
    """A model of `card` whose weights are all unlike those that any library begins with."""
    torch.manual_seed(3)
    model = build(card).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.02)
    return model


def export(card: ModelCard, *formats: Any) -> tuple[torch.nn.Module, tuple[Export, ...]]:
    model = make_model(card)
    return model, export_formats(model, card, formats, *draw_tiles(side=card.tile_px))


def configure(**keys: Any) -> PromoteConfig:
    data = {"model": "/m", "registered_name": "nuclei", "held_out": {"tiles": "/t"}} | keys
    return validate(PromoteConfig, data, "the test")


def test_pt2_is_not_made_by_default() -> None:
    assert configure().formats == ("onnx",)
    assert configure(formats=["onnx", "pt2", "onnx"]).formats == ("onnx", "pt2")
    with pytest.raises(InputError, match="'formats"):
        configure(formats=["pickle"])
    with pytest.raises(InputError, match="'formats"):
        configure(formats=[])


def test_pt2_on_request_is_never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("an archive with room for pickled objects was loaded")

    monkeypatch.setattr(torch.export, "load", load)
    _, (pt2,) = export(CLASSIFIER, "pt2")
    assert pt2.listed.difference is not None
    assert pt2.listed.difference < 1e-4
    assert zipfile.is_zipfile(io.BytesIO(pt2.contents["model.pt2"]))
    assert pt2.listed.files == {"model.pt2": len(pt2.contents["model.pt2"])}


def test_a_missing_package_is_named_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "onnx", Format(FORMATS["onnx"].make, package="no_such_package"))
    with pytest.raises(
        InputError, match=r"format onnx needs the package no_such_package.*'histill\[no_such_package\]'"
    ):
        check_packages(["onnx"])
