"""Run a model by PyTorch, on a CPU or a GPU."""

import torch
from torch import Tensor

from histill.artifacts.formats.made import Answer
from histill.models.transfer import Model


def run_torch(network: Model, device: torch.device) -> Answer:
    """What the network itself answers; on a GPU its answers stay there."""
    placed = network.to(device)

    @torch.inference_mode()
    def answer(tiles: Tensor) -> Tensor:
        answers: Tensor = placed(tiles.to(device).float()).float()
        return answers

    return answer
