"""smp: a folder that `from_pretrained` of segmentation_models_pytorch opens."""

import copy
from pathlib import Path

import torch
from torch import Tensor

from histill.artifacts.formats.made import Made, Skipped
from histill.artifacts.formats.subject import Subject, quiet_exporters
from histill.models.segmenter import Segmenter
from histill.storage.scratch import scratch_folder

SMP_FOLDER = "smp"
FILES = ("model.safetensors", "config.json")


def make_smp(subject: Subject) -> Made | Skipped:
    """The folder of the network alone, opened by smp after `import histill.models.segmenter`, which tells it of the
    decoder.

    smp's own card is left out: it states a license of the weights, that of smp.
    """
    import segmentation_models_pytorch as smp

    model = subject.model
    if not isinstance(model, Segmenter):
        return Skipped("smp has segmenters alone; ask for timm")
    if subject.card.shapes:
        return Skipped("smp builds networks of their whole width, and this one is pruned; ask for onnx")
    network = copy.deepcopy(model.network).to(memory_format=torch.contiguous_format)
    with scratch_folder() as folder, quiet_exporters():
        network.save_pretrained(folder)
        loaded = smp.from_pretrained(folder).eval()
        files = {f"{SMP_FOLDER}/{name}": Path(folder, name).read_bytes() for name in FILES}

    def answer(tiles: Tensor) -> Tensor:
        answers: Tensor = loaded(model.normalized(tiles)).float()
        return answers

    return Made(files, answer)
