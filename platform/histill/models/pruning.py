"""Prune whole channels of a network, and rebuild a network that was pruned.

Channels that depend on each other (a convolution's outputs, the norm after it, the inputs of what reads them, both
sides of a sum or of a U-Net's skip) are removed together; torch-pruning finds them by tracing (DepGraph, Fang et al.,
arXiv 2301.12900). Every group loses the same share of its channels, those with the smallest weights: the shapes that
are left follow from the architecture alone, the choice of channels from the weights.
"""

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from histill.errors import InputError
from histill.models.attention import SelfAttention, SpatialAttention
from histill.models.cost import measure_cost

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of parameters and buffers, by name."""
_TRIES = 7  # halvings of the interval of shares: to 1 in 128


def prune_network(model: nn.Module, input_px: int, macs: float, *, name: str) -> nn.Module:
    """A copy of `model`, on the CPU, that has at most the share `macs` (0..1) of its multiply-accumulates.

    The share of channels that every group loses is the least that reaches `macs` for a tile of `input_px` pixels. The
    outputs stay. Raises InputError, naming the encoder `name`, if the network cannot be traced or reduced so far.
    """
    low, high = 0.0, 1.0
    found: nn.Module | None = None
    try:
        most = measure_cost(model, input_px).macs * macs
        for _ in range(_TRIES):
            share = (low + high) / 2
            pruned = _remove(model, input_px, share)
            if measure_cost(pruned, input_px).macs <= most:
                high, found = share, pruned
            else:
                low = share
    except Exception as error:  # whatever tracing meets in a network that it does not understand
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"encoder {name!r} cannot be pruned ({reason}); train a smaller one, such as csat_fine, in its place.",
            code="encoder-unusable",
        ) from error
    if found is None:
        raise InputError(
            f"no pruned {name!r} has {macs:.0%} of the multiply-accumulates; choose a larger macs.",
            code="config-wrong-value",
        )
    return found


def list_shapes(model: nn.Module, full: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of what `model` has smaller than `full`, the same network before it was pruned."""
    before = full.state_dict()
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if value.shape != before[name].shape}


def shrink(model: nn.Module, shapes: Shapes) -> None:
    """Give `model`, as its architecture has it, the `shapes` that pruning has left; the values are to be loaded."""
    for name, module in model.named_modules() if shapes else ():
        keys = (*module._parameters, *module._buffers)
        own = {key: shapes[full] for key in keys if (full := f"{name}.{key}") in shapes}
        for key, shape in own.items():
            old = getattr(module, key)
            new = torch.zeros(shape, dtype=old.dtype)
            setattr(module, key, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        if own:
            _state_sizes(module)


def _state_sizes(module: Any) -> None:
    """Make a layer's own attributes say what the shape of its weight does."""
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:  # depthwise: a channel's group goes with it
            module.groups = module.groups * len(module.weight) // module.out_channels
        module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = len(module.weight)


def _remove(model: nn.Module, input_px: int, share: float) -> nn.Module:
    """A copy of `model` in which every group of channels has lost its `share` with the smallest weights."""
    import torch_pruning

    pruned = copy.deepcopy(model).cpu().eval()
    with _ungated(pruned), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            pruned,
            torch.zeros(1, 3, input_px, input_px),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=share,
            ignored_layers=[_find_output(pruned)],
            num_heads={each.qkv: each.heads for each in pruned.modules() if isinstance(each, SelfAttention)},
            prune_head_dims=True,
        )
        pruner.step()
    return pruned


def _find_output(model: Any) -> nn.Module:
    """The layer of a classifier or segmenter that gives the logits."""
    if hasattr(model.network, "segmentation_head"):
        layer: nn.Module = model.network.segmentation_head[0]
        return layer
    return model.network.get_classifier()


class _Ungated(nn.Module):
    """In place of a spatial attention, which reads the mean and the maximum of any number of channels."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.ones_like(features[:, :1]).detach()


@contextlib.contextmanager
def _ungated(model: nn.Module) -> Iterator[None]:
    """Without the spatial attentions of `model` within the block: their sizes depend on no other layer's."""
    found = [
        (parent, key, child)
        for parent in model.modules()
        for key, child in parent.named_children()
        if isinstance(child, SpatialAttention)
    ]
    try:
        for parent, key, _ in found:
            setattr(parent, key, _Ungated())
        yield
    finally:
        for parent, key, child in found:
            setattr(parent, key, child)
