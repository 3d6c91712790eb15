"""Simulate layers of 8-bit integers in float, to measure what rounding does to a model and to train with it.

The scheme is that of static quantization in ONNX Runtime and OpenVINO (Jacob et al., arXiv 1712.05877, sections 2 and
3): weights are rounded to int8, symmetric about 0 with a scale for each output channel; a layer's input is rounded to
uint8, with one scale and zero point. Weights use half of int8's range: x86 CPUs without VNNI add pairs of products in
16 bits, which larger ones would saturate, so that one file would answer otherwise on an older CPU. The gradient of a
rounding is 1 within its range (straight-through).
"""

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_LEAST_WEIGHTS = 1024  # of smaller layers, rounding the input costs more time than it saves
_LEVELS, _MOST = 255, 64  # steps of uint8, and the largest int8 weight: 2 * 255 * 64 < 2**15
_TINY = 1e-12  # a scale of which the reciprocal is finite


def list_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the convolutions and linear layers that are worth quantizing, in the order of the modules.

    Small ones are not, nor convolutions in groups, which have few weights and are slower in integers.
    """
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        if module.weight.numel() >= _LEAST_WEIGHTS
    )


def quantize_layers(model: nn.Module, names: Collection[str]) -> None:
    """Make each of the named layers compute with rounded weights and a rounded input; changes `model` in place.

    Parameters and their names stay as they are. The range of an input is that of its batch.
    """
    for name in names:
        layer = model.get_submodule(name)
        if not isinstance(layer, _Rounded):
            layer.__class__ = type(f"Rounded{type(layer).__name__}", (_Rounded, type(layer)), {})


def measure_layer_errors(model: nn.Module, tiles: Tensor) -> Iterator[tuple[str, float]]:
    """Each layer of `list_layers`, with how much the model's outputs change if that layer alone is quantized.

    The error is the norm of the change over the norm of the outputs less their mean over `tiles`, float32
    [N, 3, S, S] in 0..255: a share of what tells tiles, or pixels, apart. `model` is unchanged.
    """
    with torch.inference_mode():
        expected = model(tiles)
        spread = torch.linalg.vector_norm(expected - expected.mean(0)).clamp_min(_TINY)
    for name in list_layers(model):
        rounded = copy.deepcopy(model)
        quantize_layers(rounded, [name])
        with torch.inference_mode():
            error = float(torch.linalg.vector_norm(rounded(tiles) - expected) / spread)
        yield name, error


def choose_float_layers(errors: Mapping[str, float], most: float) -> tuple[str, ...]:
    """The fewest layers to keep in float so that the others' errors add up to at most `most`, the worst first.

    Errors of rounding in different layers are taken to be independent: their squares add up.
    """
    left, kept = sum(error**2 for error in errors.values()), []
    for name, error in sorted(errors.items(), key=lambda item: -item[1]):
        if not left > most**2:
            break
        kept.append(name)
        left -= error**2
    return tuple(kept) if math.isfinite(left) else tuple(errors)


def round_weights(weight: Tensor) -> Tensor:
    """Weights [C, ...] rounded to int8 with a scale for each of the C output channels."""
    scale = weight.detach().float().abs().flatten(1).amax(1).clamp_min(_TINY) / _MOST
    zero = torch.zeros_like(scale, dtype=torch.int32)
    rounded: Tensor = torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -_MOST, _MOST)
    return rounded


def round_input(values: Tensor) -> Tensor:
    """Values of any shape rounded to uint8 over their range, which is extended to contain 0."""
    values = values.float()  # of bfloat16 there is no such operator
    low, high = values.detach().aminmax()
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / _LEVELS).clamp_min(_TINY)
    zero = (-low / scale).round().to(torch.int32)
    rounded: Tensor = torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, _LEVELS)
    return rounded


class _Rounded:
    """Added to the class of a layer: computes with rounded weights and a rounded input."""

    _parameters: dict[str, Any]

    def forward(self, values: Tensor) -> Tensor:
        weight = self._parameters["weight"]
        self._parameters["weight"] = round_weights(weight)
        try:
            outputs: Tensor = super().forward(round_input(values))  # type: ignore[misc]
            return outputs
        finally:
            self._parameters["weight"] = weight
