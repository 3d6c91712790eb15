"""A timm encoder as a teacher: the embedding of a tile, and the tokens of its patches as a feature map."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from histill.config.common import Storage
from histill.config.encoder import Color, EncoderTeacher, Pooling, Precision
from histill.errors import InputError
from histill.licenses import License, allows_commercial_use
from histill.models.resample import resize_tiles
from histill.outputs import OutputSpec
from histill.teachers.encoder_folder import (
    CONFIG_NAME,
    HubConfig,
    load_network,
    outline,
    read_config,
    read_weights,
)
from histill.teachers.encoder_presets import PRESETS, EncoderPreset, find_preset
from histill.teachers.sides import teacher_input_px
from histill.teachers.teacher import TOKENS

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_UNSEEN = (RuntimeError, AssertionError, ValueError, TypeError)  # what timm raises for a side that no model takes


@dataclass(frozen=True)
class Frame:
    """How a network is fed, and what of its answer is the embedding."""

    arguments: tuple[tuple[str, object], ...]  # beside those of the folder
    pooling: Pooling | None  # None: the network's own
    mpp: float | None
    size_px: int
    tile_px: int
    mean: Color
    std: Color
    precision: Precision

    @classmethod
    def of(cls, config: EncoderTeacher, preset: EncoderPreset | None, hub: HubConfig) -> "Frame":
        """What `config` says, else its preset, else the folder, else what is usual."""
        of_folder = hub.pretrained_cfg
        size_px = config.size_px or config.options.img_size or (preset.size_px if preset else hub.side_px or 224)
        mean, std = preset.color if preset else (of_folder.mean, of_folder.std)
        options = {**(preset.options.arguments() if preset else {}), **config.options.arguments()}
        return cls(
            arguments=tuple(sorted(options.items())),
            pooling=config.pooling or (preset.pooling if preset else None),
            mpp=config.mpp or (preset.mpp if preset else None),
            size_px=size_px,
            tile_px=config.tile_px or size_px,
            mean=config.mean or mean or IMAGENET_DEFAULT_MEAN,
            std=config.std or std or IMAGENET_DEFAULT_STD,
            precision=config.precision or (preset.precision if preset else "fp32"),
        )


@dataclass(frozen=True)
class TimmEncoder:
    """A network of a hub folder, which normalizes pixels itself.

    It sees tiles and windows at their own side, if `frame` has no other for tiles; so each is refused that the network
    does not take, such as one that is no whole number of patches.
    """

    folder: str
    network: nn.Module
    shadow: nn.Module  # the same without weights, of which shapes are asked
    frame: Frame
    digest: str
    license: License | None
    _known_shapes: dict[int, tuple[int, tuple[int, int, int]]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, config: EncoderTeacher, storage: Storage, *, gpu: bool = False) -> "TimmEncoder":
        """From the folder of `config`.

        Raises InputError when it holds no timm model, is not of the preset's architecture, or its weights do not fit;
        and when its answer to a tile is no vector.
        """
        preset = None if config.preset is None else find_preset(config.preset)
        hub = read_config(config.folder, storage)
        if preset is not None and preset.architecture != hub.architecture:
            raise InputError(
                f"{config.folder} holds {hub.architecture}, and preset {config.preset} is {preset.architecture}; name "
                "its folder, or leave encoder.preset out.",
                code="weights-do-not-fit",
            )
        frame = Frame.of(config, preset, hub)
        arguments = dict(frame.arguments)
        weights, digest = read_weights(config.folder, storage)
        network = load_network(hub, weights, config.folder, arguments)
        made_of = json.dumps([repr(frame), hub.model_dump(mode="json"), digest], sort_keys=True)
        teacher = cls(
            config.folder,
            network.to("cuda" if gpu else "cpu").to(memory_format=torch.channels_last),
            outline(hub, arguments),
            frame,
            hashlib.sha256(made_of.encode()).hexdigest(),
            config.license or (preset.license if preset else None) or _license_of(hub),
        )
        teacher._check_pooling()
        if preset is not None and config.pooling is None and teacher.width != preset.width:
            raise InputError(
                f"{config.folder} gives embeddings of width {teacher.width}, and preset {config.preset} has "
                f"{preset.width}; name the folder of that encoder, or leave encoder.preset out.",
                code="weights-do-not-fit",
            )
        return teacher

    @cached_property
    def width(self) -> int:
        """Of an embedding."""
        return self._shapes(self.frame.size_px)[0]

    @property
    def outputs(self) -> OutputSpec:
        return OutputSpec("encoder", (), width=self.width)

    @property
    def mpp(self) -> float | None:
        return self.frame.mpp

    @property
    def features(self) -> "TimmEncoder":
        return self

    @cached_property
    def layers(self) -> Mapping[str, int]:
        return {TOKENS: self._shapes(self.frame.size_px)[1][0]}

    def sees(self, side_px: int) -> int:
        """The side at which the network sees a tile or window of `side_px`.

        Raises InputError when that is no whole number of pixels, or a side that it does not take.
        """
        side = teacher_input_px(side_px, self.frame.tile_px, self.frame.size_px, self.folder)
        self._shapes(side)
        return side

    def map_shape(self, layer: str, side_px: int) -> tuple[int, int, int]:
        """The shape [C, h, w] of the tokens of tiles or windows of `side_px`.

        Raises InputError when `layer` is another.
        """
        if layer != TOKENS:
            raise InputError(
                f"teacher {self.folder} has no layer {layer!r}; its only one is {TOKENS}.", code="layer-unknown"
            )
        return self._shapes(self.sees(side_px))[1]

    @torch.inference_mode()
    def respond(self, tiles: Tensor) -> Tensor:
        """Embeddings, float32 [B, D], of tiles or windows of tiles, uint8 [B, 3, S, S]."""
        return self.respond_with_maps(tiles, ())[0]

    @torch.inference_mode()
    def respond_with_maps(self, tiles: Tensor, layers: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings as `respond` gives them and, if `layers` names them, the tokens, float32 [B, C, h, w]."""
        side = self.sees(tiles.shape[-1])
        return self.forward(resize_tiles(tiles.to(self._device), side), layers, graph=False)

    def forward(self, seen: Tensor, layers: tuple[str, ...], *, graph: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The same for tiles at the side that the network sees, [B, 3, S, S] in 0..255; with `graph` differentiable."""
        device = self._device
        mean, std = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in (self.frame.mean, self.frame.std))
        pixels = (seen.to(device).float() / 255 - mean) / std
        with torch.set_grad_enabled(graph):
            embedding, tokens = _forward_as(self.network, pixels, self.frame, tokens=bool(layers))
        return embedding.float(), {TOKENS: tokens.float()} if tokens is not None else {}

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _shapes(self, side_px: int) -> tuple[int, tuple[int, int, int]]:
        """Width of the embedding and shape of the tokens of tiles that the network sees at `side_px`."""
        if side_px not in self._known_shapes:
            self._known_shapes[side_px] = self._ask_shapes(side_px)
        return self._known_shapes[side_px]

    def _ask_shapes(self, side_px: int) -> tuple[int, tuple[int, int, int]]:
        try:
            with torch.no_grad():
                pixels = torch.empty(1, 3, side_px, side_px, device="meta")
                embedding, tokens = _forward(self.shadow, pixels, self.frame.pooling, tokens=True)
        except _UNSEEN as error:
            said = str(error).strip().splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise InputError(
                f"teacher {self.folder} cannot see tiles of {side_px} px ({said}); cut tiles of {self.frame.size_px} "
                f"px, or set encoder.tile_px to the side of yours, to have them resized to that.",
                code="size-does-not-fit",
            ) from None
        assert tokens is not None
        channels, height, width = tokens.shape[1:]
        return embedding.shape[-1], (channels, height, width)

    def _check_pooling(self) -> None:
        """Raise InputError unless the network's answer can be pooled as `frame` says."""
        pooling, network = self.frame.pooling, self.network
        if pooling is not None and not hasattr(network, "num_prefix_tokens"):
            raise InputError(
                f"teacher {self.folder} has no tokens to pool by {pooling!r}, as transformers have; leave "
                "encoder.pooling out.",
                code="encoder-pooling",
            )
        if pooling in ("cls", "cls_mean") and not network.num_prefix_tokens:
            raise InputError(
                f"teacher {self.folder} has no class token; set encoder.pooling to mean.", code="encoder-pooling"
            )
        if pooling is not None and not isinstance(getattr(network, "fc_norm", nn.Identity()), nn.Identity):
            raise InputError(
                f"teacher {self.folder} normalizes tokens after it has pooled them; leave encoder.pooling out.",
                code="encoder-pooling",
            )
        with torch.no_grad():
            side = self.frame.size_px
            embedding, _ = _forward(self.shadow, torch.empty(1, 3, side, side, device="meta"), pooling, tokens=False)
        if embedding.ndim != 2:
            raise InputError(
                f"teacher {self.folder} does not pool its tokens itself; set encoder.pooling to cls, mean or cls_mean.",
                code="encoder-pooling",
            )


class PooledNetwork(nn.Module):
    """The network of `encoder` with its pooling and precision: normalized pixels [B, 3, S, S] -> embeddings [B, D]."""

    def __init__(self, encoder: TimmEncoder) -> None:
        super().__init__()
        self.network, self.frame = encoder.network, encoder.frame

    def forward(self, pixels: Tensor) -> Tensor:
        return _forward_as(self.network, pixels, self.frame, tokens=False)[0]


def _forward_as(network: Any, pixels: Tensor, frame: Frame, *, tokens: bool) -> tuple[Tensor, Tensor | None]:
    """`_forward` at the pooling and precision of `frame`."""
    dtype, device = _DTYPES[frame.precision], pixels.device.type
    cast = dtype != torch.float32 and device != "meta"  # which has no autocast
    with torch.autocast(device, dtype) if cast else contextlib.nullcontext():
        return _forward(network, pixels, frame.pooling, tokens=tokens)


def _forward(network: Any, pixels: Tensor, pooling: Pooling | None, *, tokens: bool) -> tuple[Tensor, Tensor | None]:
    """Embeddings [B, D] of normalized pixels [B, 3, S, S] and, if asked for, tokens [B, C, h, w]."""
    if tokens:
        normalize = {"norm": True} if hasattr(network, "num_prefix_tokens") else {}
        features, (found,) = network.forward_intermediates(pixels, indices=1, **normalize)
    else:
        features, found = network.forward_features(pixels), None
    if pooling is None:
        embedding: Tensor = network.forward_head(features, pre_logits=True)
        return embedding, found
    parts = {"cls": lambda: features[:, 0], "mean": lambda: features[:, network.num_prefix_tokens :].mean(1)}
    return torch.cat([parts[part]() for part in pooling.split("_")], 1), found


def _license_of(hub: HubConfig) -> License | None:
    """What the folder calls its license, which is believed only where it forbids commercial use.

    timm writes the license of its own weights into every folder that it saves, whatever the weights are.
    """
    named = hub.pretrained_cfg.license
    if not named:
        return None
    source = f"{CONFIG_NAME} of the teacher's folder"
    of_presets = {each.license.name for each in PRESETS.values() if each.license.commercial is False}
    if named in of_presets or allows_commercial_use(named) is False:
        return License(name=named, commercial=False, source=source)
    return License(name=f"{named}, says {CONFIG_NAME}", commercial=None, source=source)


def load_teacher(config: EncoderTeacher, _tile_mpp: float, storage: Storage, *, gpu: bool = False) -> TimmEncoder:
    """`TimmEncoder.load`."""
    return TimmEncoder.load(config, storage, gpu=gpu)
