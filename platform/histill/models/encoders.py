"""Encoders of whole tiles, which are timm networks without a classifier, and the embeddings of any model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn

from histill.models.segmenter import Segmenter, check_encoder

if TYPE_CHECKING:
    from histill.models.transfer import Model


class Encoder(nn.Module):
    """A timm network without its classifier, with its input normalization inside.

    Takes uint8 or float [B, 3, H, W] with values in 0..255; returns float32 embeddings [B, D], timm's pooled features.
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
        embeddings: Tensor = self.network(self.normalized(tiles))
        return embeddings.float()

    def normalized(self, tiles: Tensor) -> Tensor:
        """Normalize pixel values, 0..255, to the network's input."""
        return (tiles.to(self.mean.dtype) / 255 - self.mean) / self.std


def build_encoder(encoder: str, *, mean: Sequence[float], std: Sequence[float]) -> Encoder:
    """An untrained encoder. Raises InputError for an unknown timm name."""
    check_encoder(encoder)
    return Encoder(timm.create_model(encoder, num_classes=0), encoder, mean, std)


def embed(model: "Model", tiles: Tensor) -> Tensor:
    """Embeddings, float32 [B, D], of tiles [B, 3, H, W] with values in 0..255, whatever the model is for.

    A classifier gives the features that its last layer sees; a segmenter, which has no such layer, the mean of its
    encoder's last feature map.
    """
    if isinstance(model, Segmenter):
        return pool(model.features(tiles)[-1])
    if isinstance(model, Encoder):
        return model(tiles)
    network: Any = model.network
    embeddings: Tensor = network.forward_head(network.forward_features(model.normalized(tiles)), pre_logits=True)
    return embeddings.float()


def answer_and_embed(model: "Model", tiles: Tensor) -> tuple[Tensor | None, Tensor]:
    """The logits of `tiles`, None of an encoder, and their embeddings, both float32, in one pass."""
    if isinstance(model, Segmenter):
        maps = model.features(tiles)
        return model.logits(maps), pool(maps[-1])
    if isinstance(model, Encoder):
        return None, model(tiles)
    network: Any = model.network
    features = network.forward_features(model.normalized(tiles))
    return network.forward_head(features).float(), network.forward_head(features, pre_logits=True).float()


def embedding_width(model: "Model") -> int:
    """D of `embed`."""
    if isinstance(model, Segmenter):
        return int(model.network.encoder.model.feature_info[-1]["num_chs"])
    network: Any = model.network
    return int(getattr(network, "head_hidden_size", network.num_features))


def pool(feature_map: Tensor) -> Tensor:
    """The mean of a feature map [B, C, h, w] over its places, float32 [B, C]."""
    return feature_map.float().mean((2, 3))
