"""A network teacher: any segmenter or classifier from a model folder."""

from dataclasses import dataclass

import torch
from torch import Tensor

from histill.artifacts.model_folder import load, resolve
from histill.config.common import Storage
from histill.errors import InputError
from histill.models.feature_maps import forward_with_features, layer_channels
from histill.models.resample import resize_logits, resize_tiles
from histill.models.transfer import Model
from histill.outputs import OutputSpec
from histill.teachers.sides import teacher_input_px
from histill.teachers.teacher import TOKENS


@dataclass(frozen=True)
class NetworkTeacher:
    """A trained network, which normalizes pixels itself; a segmenter's logits have the tiles' own size.

    It sees windows at the same resolution as whole tiles: `size_px` for `tile_px`.
    """

    model: Model
    outputs: OutputSpec
    digest: str
    mpp: float
    tile_px: int
    size_px: int  # input size for a tile of `tile_px`
    license: None = None  # its card names those who taught it

    @classmethod
    def load(cls, uri: str, storage: Storage, *, gpu: bool = False) -> "NetworkTeacher":
        """Load it from a model folder or a finished run. Raises InputError when `uri` is neither."""
        model, card, digest = load(resolve(uri, storage), storage)
        model = model.requires_grad_(False).to("cuda" if gpu else "cpu")
        return cls(model, card.outputs, digest, card.tile_mpp, card.tile_px, card.size_px)

    @property
    def features(self) -> "NetworkTeacher":
        return self

    @property
    def layers(self) -> dict[str, int]:
        """Channels by layer; an encoder's last feature map also goes by the name of patch tokens."""
        channels = layer_channels(self.model)
        return {**channels, TOKENS: channels[self._last]} if self.outputs.kind == "encoder" else channels

    @property
    def _last(self) -> str:
        return list(layer_channels(self.model))[-1]

    def sees(self, side_px: int) -> int:
        """The network's input size for a tile or window of `side_px`.

        Raises InputError when it is not a whole number of pixels.
        """
        return teacher_input_px(side_px, self.tile_px, self.size_px, self.digest[:12])

    def map_shape(self, layer: str, side_px: int) -> tuple[int, int, int]:
        """The shape [C, h, w] of the feature map of `layer` for tiles or windows of `side_px`.

        Raises InputError, naming the existing layers, when there is no such layer.
        """
        names = self.layers
        if layer not in names:
            raise InputError(
                f"teacher {self.digest[:12]} has no layer {layer!r}; its layers are {', '.join(names)}.",
                code="layer-unknown",
            )
        _, maps = self.respond_with_maps(torch.zeros(1, 3, side_px, side_px, dtype=torch.uint8), (layer,))
        channels, height, width = maps[layer].shape[1:]
        return channels, height, width

    @torch.inference_mode()
    def respond(self, tiles: Tensor) -> Tensor:
        """Logits, float32 [B, K, S, S] or [B, K], for tiles or windows, uint8 [B, 3, S, S]."""
        return self.respond_with_maps(tiles, ())[0]

    @torch.inference_mode()
    def respond_with_maps(self, tiles: Tensor, layers: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """The responses to tiles or windows, uint8 [B, 3, S, S], and the feature maps of `layers`."""
        tiles = tiles.to(next(self.model.parameters()).device)
        logits, maps = self._forward(resize_tiles(tiles, self.sees(tiles.shape[-1])), layers)
        return (resize_logits(logits, tiles.shape[-1]) if self.outputs.dense else logits), maps

    def forward(self, seen: Tensor, layers: tuple[str, ...], *, graph: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits and the feature maps of `layers` for tiles at the network's input size, uint8 [B, 3, S, S].

        Logits are [B, K] or [B, K, S, S]; with `graph` they are differentiable with respect to the maps.
        """
        tiles = seen.to(next(self.model.parameters()).device).float()
        with torch.set_grad_enabled(graph):
            return self._forward(tiles.requires_grad_(graph), layers)

    def _forward(self, tiles: Tensor, layers: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        inside = {layer: self._last if layer == TOKENS else layer for layer in layers}
        logits, maps = forward_with_features(self.model, tiles, tuple(dict.fromkeys(inside.values())))
        return logits, {layer: maps[name] for layer, name in inside.items()}


def load_teacher(uri: str, _tile_mpp: float, storage: Storage, *, gpu: bool = False) -> NetworkTeacher:
    """`NetworkTeacher.load`."""
    return NetworkTeacher.load(uri, storage, gpu=gpu)
