"""timm: a folder that `timm.create_model("local-dir:<folder>", pretrained=True)` opens."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from histill.artifacts.formats.made import Made, Skipped
from histill.artifacts.formats.subject import Subject, quiet_exporters
from histill.artifacts.model_folder import ModelCard
from histill.models.classifiers import Classifier
from histill.models.encoders import Encoder
from histill.storage.scratch import scratch_folder

TIMM_FOLDER = "timm"
FILES = ("model.safetensors", "config.json")
_OF_OTHER_WEIGHTS = ("tag", "license", "notes", "origin_url", "paper_name", "paper_ids", "crop_mode", "pool_size")


def make_timm(subject: Subject) -> Made | Skipped:
    """The folder of the network alone, opened by timm; `config.json` has the mean and standard deviation of its input.

    An architecture of histill's own, such as `csat`, is known to timm after `import histill.models`.
    """
    import timm
    from timm.models import save_for_hf

    model = subject.model
    if not isinstance(model, Classifier | Encoder):
        return Skipped("timm has no segmenters; ask for smp")
    if subject.card.shapes:
        return Skipped("timm builds networks of their whole width, and this one is pruned; ask for onnx")
    network: Any = copy.deepcopy(model.network).to(memory_format=torch.contiguous_format)  # else it cannot be saved
    network.pretrained_cfg = describe_input(network.pretrained_cfg, subject.card)
    with scratch_folder() as folder, quiet_exporters():
        labels = {"label_names": list(subject.card.classes)} if subject.card.classes else None
        save_for_hf(network, folder, model_config=labels, safe_serialization=True)
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        files = {f"{TIMM_FOLDER}/{name}": Path(folder, name).read_bytes() for name in FILES}

    def answer(tiles: Tensor) -> Tensor:
        answers: Tensor = loaded(model.normalized(tiles)).float()
        return answers

    return Made(files, answer)


def describe_input(of_timm: Mapping[str, Any], card: ModelCard) -> dict[str, Any]:
    """timm's configuration of the architecture, with the input of `card` and without what it says of other weights."""
    kept = {
        key: value
        for key, value in of_timm.items()
        if key not in _OF_OTHER_WEIGHTS and not key.startswith("test_") and value is not None
    }
    side = card.size_px
    return kept | {
        "input_size": (3, side, side),
        "mean": card.mean,
        "std": card.std,
        "crop_pct": 1.0,
        "interpolation": "box" if card.tile_px > side else "bilinear",  # as histill.models.resample does
        "num_classes": len(card.classes),
    }
