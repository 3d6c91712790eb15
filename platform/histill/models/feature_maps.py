"""A model's feature maps by their timm layer names, from finest to coarsest."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from histill.models.segmenter import Segmenter
from histill.models.transfer import Model


def layer_channels(model: Model) -> dict[str, int]:
    """Channels of each layer's feature map, by layer name."""
    network: Any = model.network.encoder.model if isinstance(model, Segmenter) else model.network
    return {str(layer["module"]): int(layer["num_chs"]) for layer in network.feature_info}


def forward_with_features(model: Model, tiles: Tensor, layers: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `model`'s logits for `tiles` and the feature maps [B, C, h, w] of `layers`, by name.

    `layers` must be among `layer_channels(model)`.
    """
    if not layers:
        return model(tiles), {}
    names = list(layer_channels(model))
    if not isinstance(model, Segmenter):
        network: Any = model.network
        indices = sorted(names.index(layer) for layer in layers)
        last, maps = network.forward_intermediates(model.normalized(tiles), indices=indices)
        return network.forward_head(last).float(), dict(zip((names[at] for at in indices), maps, strict=True))
    features = model.features(tiles)
    return model.logits(features), choose_maps(model, features, layers)


def choose_maps(model: Segmenter, features: Sequence[Tensor], layers: tuple[str, ...]) -> dict[str, Tensor]:
    """Select the feature maps of `layers`, by name, from the `features` of all stages of a segmenter's encoder."""
    names = list(layer_channels(model))
    by_name = dict(zip(names, features[-len(names) :], strict=True))
    return {layer: by_name[layer] for layer in layers}
