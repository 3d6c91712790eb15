"""Simulated 8-bit layers against the equations in float64, and what they say of a model."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from histill.models.fake_quantization import (
    choose_float_layers,
    list_layers,
    measure_layer_errors,
    quantize_layers,
    round_input,
    round_weights,
)

pytestmark = pytest.mark.unit


def reference_weights(weight: np.ndarray) -> np.ndarray:
    """w ~ s q with q in -64..64 and s = max |w| / 64 of each output channel, in float64."""
    flat = weight.astype(np.float64).reshape(len(weight), -1)
    scale = np.abs(flat).max(1, keepdims=True) / 64
    return (scale * np.clip(np.round(flat / scale), -64, 64)).reshape(weight.shape)


def reference_input(values: np.ndarray) -> np.ndarray:
    """x ~ s (q - z) with q in 0..255, s = (high - low) / 255 and 0 among the values, in float64."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    return scale * (np.clip(np.round(values.astype(np.float64) / scale) + zero, 0, 255) - zero)


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 3, 3)])
def test_weights_are_rounded_by_output_channel(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight[0] *= 1000  # a scale shared by all channels would round the others to nothing
    np.testing.assert_allclose(round_weights(weight), reference_weights(weight.numpy()), rtol=1e-6, atol=1e-6)
    assert torch.equal(round_weights(torch.zeros(shape)), torch.zeros(shape))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (2.0, 3.0), (-3.0, -2.0)])
def test_an_input_is_rounded_over_its_range_with_zero(low: float, high: float) -> None:
    values = low + (high - low) * torch.rand(4, 7, 5, generator=torch.Generator().manual_seed(2))
    step = (max(high, 0) - min(low, 0)) / 255
    off = np.abs(round_input(values).numpy() - reference_input(values.numpy()))
    assert (off > 1e-6).mean() < 0.01  # a value half-way between two steps may go to either
    assert off.max() < step * 1.01
    assert torch.equal(round_input(torch.zeros(3)), torch.zeros(3))


def test_the_gradient_passes_a_rounding() -> None:
    model = nn.Sequential(nn.Linear(40, 30))
    quantize_layers(model, ["0"])
    values = torch.randn(4, 40, requires_grad=True)
    model(values).sum().backward()
    weight = model[0].weight
    assert isinstance(weight, nn.Parameter)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, round_input(values).sum(0).expand(30, 40))
    assert values.grad is not None
    torch.testing.assert_close(values.grad, round_weights(weight).sum(0).expand(4, 40))
    assert list(model.state_dict()) == ["0.weight", "0.bias"]


def test_errors_are_those_of_one_layer_at_a_time() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 30))
    model.append(nn.Linear(30, 2))  # too small to be worth it
    with torch.no_grad():
        model[4].weight[:, 7], model[0].weight[7], model[0].bias[7] = 50.0, 0.0, -1.0  # a dead input with huge weights
    before = copy.deepcopy(model.state_dict())
    tiles = 255 * torch.rand(6, 3, 9, 9)
    errors = dict(measure_layer_errors(model, tiles))
    assert list(errors) == list(list_layers(model)) == ["0", "4"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    hidden = model[:4](tiles).detach()
    expected = model[4:](hidden).detach().double()
    weight, bias = reference_weights(model[4].weight.detach().numpy()), model[4].bias.detach().double()
    rounded = torch.from_numpy(reference_input(hidden.numpy()) @ weight.T) + bias
    changed = rounded @ model[5].weight.detach().double().T + model[5].bias.detach().double()
    share = (changed - expected).norm() / (expected - expected.mean(0)).norm()
    assert errors["4"] == pytest.approx(float(share), rel=1e-3)
    assert errors["4"] > 0.9  # all that tells tiles apart is lost
    assert errors["0"] < 0.2


def test_the_worst_layers_stay_in_float_until_the_errors_are_small_enough() -> None:
    errors = {"a": 0.03, "b": 0.4, "c": 0.04, "d": 0.2}
    assert choose_float_layers(errors, 1.0) == ()
    assert choose_float_layers(errors, 0.25) == ("b",)
    assert choose_float_layers(errors, 0.0501) == ("b", "d")  # 0.03 and 0.04 add up to 0.05
    assert choose_float_layers(errors, 0.049) == ("b", "d", "c")
    assert choose_float_layers({"a": float("nan"), "b": 0.1}, 1.0) == ("a", "b")
