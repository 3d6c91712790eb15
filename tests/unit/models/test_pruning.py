"""Pruned networks: their cost, that what depends on a channel goes with it, and that shapes alone rebuild them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from histill.errors import InputError
from histill.models.classifiers import build_classifier
from histill.models.cost import measure_cost
from histill.models.pruning import list_shapes, prune_network, shrink
from histill.models.segmenter import build_segmenter

pytestmark = pytest.mark.unit

SIDE = 64
NORMALIZATION: dict[str, Any] = {"mean": (0.7, 0.5, 0.6), "std": (0.2, 0.2, 0.2)}


def classifier(encoder: str) -> nn.Module:
    return build_classifier(encoder, 3, **NORMALIZATION).eval()


def unet(encoder: str) -> nn.Module:
    return build_segmenter(encoder, 2, (32, 24, 16, 16, 8), **NORMALIZATION).eval()


def tiles(count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).float()


@torch.inference_mode()
def answer(model: nn.Module) -> torch.Tensor:
    logits: torch.Tensor = model(tiles())
    return logits


@pytest.mark.parametrize(
    ("build", "encoder"),
    [(classifier, "csat_tiny"), (unet, "csat_tiny"), (classifier, "resnet_gn"), (classifier, "mobilenetv3_small_050")],
)
def test_half_of_the_work_is_left_and_shapes_rebuild_the_network(
    build: Callable[[str], nn.Module], encoder: str
) -> None:
    torch.manual_seed(0)
    model = build(encoder)
    before = answer(model)
    pruned = prune_network(model, SIDE, 0.5, name=encoder)
    assert torch.equal(answer(model), before)
    assert answer(pruned).shape == before.shape
    share = measure_cost(pruned, SIDE).macs / measure_cost(model, SIDE).macs
    assert 0.35 < share <= 0.5
    torch.manual_seed(1)
    again = build(encoder)
    shapes = list_shapes(pruned, again)
    assert list_shapes(prune_network(again, SIDE, 0.5, name=encoder), model) == shapes  # whatever the weights are
    shrink(again, shapes)
    again.load_state_dict(pruned.state_dict())
    assert torch.equal(answer(again), answer(pruned))
    again.train()(tiles()).sum().backward()
    assert all(value.grad is None or value.grad.shape == value.shape for value in again.parameters())


@torch.no_grad()
def silence(model: nn.Module) -> None:
    """Make the first half of the channels of every convolution and norm 0 for any tile."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            for values in (module.weight, module.bias, module.running_mean):
                values[: module.num_features // 2] = 0  # type: ignore[index]
        elif isinstance(module, nn.Conv2d) and module.out_channels > 3:
            module.weight[: module.out_channels // 2] = 0


@pytest.mark.parametrize("build", [classifier, unet])
def test_channels_that_say_nothing_are_those_that_go_and_nothing_changes(build: Callable[[str], nn.Module]) -> None:
    """Also across sums, and across a U-Net's skips, where a channel's place in what is concatenated counts."""
    torch.manual_seed(0)
    model = build("resnet18")
    for module in list(model.modules()):  # a group norm's figures are those of channels that go, too
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.BatchNorm2d(child.num_channels))
    silence(model.eval())
    with torch.no_grad():
        for value in model.parameters():
            value[value != 0] += 0.02 * torch.randn_like(value[value != 0])
    before = answer(model)
    pruned = prune_network(model, SIDE, 0.6, name="resnet18")
    assert measure_cost(pruned, SIDE).macs <= 0.6 * measure_cost(model, SIDE).macs
    torch.testing.assert_close(answer(pruned), before, rtol=1e-4, atol=1e-4)
    loud = copy.deepcopy(model)
    with torch.no_grad():
        for module in loud.modules():
            if (isinstance(module, nn.Conv2d) and module.out_channels > 3) or isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(module.weight.flip(0))
    assert (answer(loud) - before).abs().max() > 1e-3  # the channels that stay do matter


def test_a_network_that_cannot_be_traced_or_reduced_is_named() -> None:
    with pytest.raises(InputError, match=r"no pruned 'resnet_gn' has 0% of the multiply-accumulates"):
        prune_network(classifier("resnet_gn"), SIDE, 1e-6, name="resnet_gn")
    broken = classifier("resnet_gn")
    broken.network.layer1 = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"encoder 'resnet_gn' cannot be pruned \("):
        prune_network(broken, SIDE, 0.5, name="resnet_gn")
