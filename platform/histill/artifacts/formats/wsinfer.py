"""A WSInfer bundle: TorchScript and a `config.json`, which WSInfer and QuPath's WSInfer extension run on slides.

The format is the specification 1.0 of the WSInfer Model Zoo (https://github.com/SBU-BMI/wsinfer-zoo). TorchScript keeps
its tensors in pickles that torch reads without running what they name; histill makes such an archive on request only,
and never loads one: what answers here is the traced network in memory, before it is saved.
"""

import contextlib
import copy
import io
import zipfile
from typing import Any

import torch
from torch import Tensor

from histill.artifacts.formats.made import Made, Skipped
from histill.artifacts.formats.subject import Subject, quiet_exporters
from histill.artifacts.model_folder import ModelCard
from histill.models.classifiers import Classifier
from histill.storage.control import json_bytes

WSINFER_FOLDER = "wsinfer"
_BOX = 4  # as torchvision numbers interpolations: the mean of an area. QuPath reads the size alone
TORCHSCRIPT_NAME = "torchscript_model.pt"  # so named by the specification


def make_wsinfer(subject: Subject) -> Made | Skipped:
    """The bundle of a classifier whose classes exclude one another: both readers apply a softmax to its logits."""
    model, card = subject.model, subject.card
    if not isinstance(model, Classifier):
        return Skipped(f"WSInfer classifies tiles, and this is of kind {card.kind}")
    if card.multi_label:
        return Skipped("WSInfer applies a softmax, and the classes do not exclude one another")
    network = copy.deepcopy(model.network).to(memory_format=torch.contiguous_format)
    traced = trace(network, card.size_px)

    def answer(tiles: Tensor) -> Tensor:
        answers: Tensor = traced(model.normalized(tiles)).float()
        return answers

    files = {
        TORCHSCRIPT_NAME: save_torchscript(traced),
        "config.json": json_bytes(describe_model(card)),
        "README.md": _write_readme(card).encode(),
    }
    return Made({f"{WSINFER_FOLDER}/{name}": data for name, data in files.items()}, answer)


def describe_model(card: ModelCard) -> dict[str, Any]:
    """The `config.json` of the specification: tiles as histill cut them, resized, scaled to 0..1 and normalized."""
    averaged = {"interpolation": _BOX} if card.tile_px > card.size_px else {}
    return {
        "spec_version": "1.0",
        "architecture": card.encoder,
        "num_classes": len(card.classes),
        "class_names": list(card.classes),
        "patch_size_pixels": card.tile_px,
        "spacing_um_px": card.tile_mpp,
        "transform": [
            {"name": "Resize", "arguments": {"size": card.size_px, **averaged}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": list(card.mean), "std": list(card.std)}},
        ],
    }


def trace(network: torch.nn.Module, side_px: int) -> torch.jit.ScriptModule:
    """The TorchScript of `network` for any number of tiles, without float64: Apple's GPUs have none."""
    with quiet_exporters(), torch.inference_mode():
        traced: Any = torch.jit.trace(network, torch.zeros(2, 3, side_px, side_px), check_trace=False)
    for module in traced.modules():
        for node in _find_constants(module):
            if node.hasAttribute("value") and node.kindOf("value") == "t" and node.t("value").dtype == torch.float64:
                value = node.t("value").float()
                node.t_("value", value)
                node.output().inferTypeFrom(value)  # which says float64 otherwise, and what runs the graph may trust it
    return traced


def _find_constants(module: Any) -> list[Any]:
    """The constants of a traced module's graph; one that was never called has no graph."""
    with contextlib.suppress(RuntimeError):
        return list(module.graph.findAllNodes("prim::Constant"))
    return []


def save_torchscript(traced: torch.jit.ScriptModule) -> bytes:
    """The archive, without what torch keeps for debugging: paths of this machine's files, and the traced input."""
    whole, lean = io.BytesIO(), io.BytesIO()
    with quiet_exporters():
        torch.jit.save(traced, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(lean, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            if not name.endswith(".debug_pkl") and "/traced_inputs" not in name:
                target.writestr(zipfile.ZipInfo(name), source.read(name))
    return lean.getvalue()


def _write_readme(card: ModelCard) -> str:
    """What QuPath shows of the model."""
    return (
        f"# A classifier of {', '.join(card.classes)}\n\n"
        f"{card.encoder}, for tiles of {card.tile_px} px at {card.tile_mpp:g} um/px of H&E slides. Made by histill "
        f"{card.histill}; the version's own README.md says how it was trained and scored.\n\n"
        "Research software: not a medical device, and not tested for diagnosis.\n"
    )
