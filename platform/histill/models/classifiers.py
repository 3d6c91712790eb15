"""Classifiers of whole tiles: any timm encoder with its own head, fed with pixel values."""

from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn

from histill.models.students import check_encoder, check_tile_size


class Classifier(nn.Module):
    """A timm model with its input normalisation inside.

    Takes uint8 or float [B, 3, H, W] with values in 0..255, H and W divisible by 32 (else `InputError`); returns
    float32 logits [B, K].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, encoder_name: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.encoder_name = encoder_name
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, tiles: Tensor) -> Tensor:
        check_tile_size(*tiles.shape[-2:])
        logits: Tensor = self.network((tiles.to(self.mean.dtype) / 255 - self.mean) / self.std)
        return logits.float()


def build_classifier(encoder: str, classes: int, *, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """An untrained classifier of `classes` classes. Raises InputError for an unknown encoder."""
    check_encoder(encoder)
    return Classifier(timm.create_model(encoder, num_classes=classes), encoder, mean, std)
