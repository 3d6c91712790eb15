"""Classifiers of whole tiles: any timm encoder with its own head, on raw pixel values."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import timm
import torch
from torch import Tensor, nn

from histill.errors import InputError
from histill.models.segmenter import check_encoder

if TYPE_CHECKING:
    from histill.models.encoders import Encoder


class Classifier(nn.Module):
    """A timm model with its input normalization inside.

    Takes uint8 or float [B, 3, H, W] with values in 0..255; returns float32 logits [B, K].
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
        logits: Tensor = self.network(self.normalized(tiles))
        return logits.float()

    def normalized(self, tiles: Tensor) -> Tensor:
        """The normalized input of the network."""
        return (tiles.to(self.mean.dtype) / 255 - self.mean) / self.std


def build_classifier(encoder: str, classes: int, *, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """Build an untrained classifier with `classes` classes. Raises InputError for an unknown encoder."""
    check_encoder(encoder)
    return Classifier(timm.create_model(encoder, num_classes=classes), encoder, mean, std)


def check_side(classifier: "Classifier | Encoder", side_px: int) -> None:
    """Raise InputError when tiles of `side_px` pixels are too small for the encoder's last stage."""
    shadow = copy.deepcopy(classifier).to("meta").eval()
    try:
        with torch.no_grad():
            shadow(torch.empty(1, 3, side_px, side_px, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"the encoder {classifier.encoder_name} cannot see tiles of {side_px} px ({reason}); choose a larger "
            "size_px, or another encoder.",
            code="size-does-not-fit",
        ) from None
