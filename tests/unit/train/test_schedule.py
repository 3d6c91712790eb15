"""The optimizer's groups and its learning rate."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from histill.config.runs import Optimizer
from histill.train.schedule import learning_rate, make_optimizer

pytestmark = pytest.mark.unit


@given(st.integers(1, 300), st.floats(0, 0.99), st.floats(1e-6, 1.0))
def test_the_rate_rises_to_its_peak_and_falls_without_reaching_0(steps: int, warmup: float, peak: float) -> None:
    config = Optimizer(lr=peak, warmup=warmup)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    top = max(0, int(warmup * steps) - 1)
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    assert rates[top] == pytest.approx(peak)
    assert all(first < second for first, second in itertools.pairwise(rates[: top + 1]))
    falling = rates[int(warmup * steps) :]
    assert all(first > second for first, second in itertools.pairwise(falling))


def test_the_rate_follows_its_formula() -> None:
    config = Optimizer(lr=0.2, warmup=0.25)
    rates = [learning_rate(config, step, 8) for step in range(8)]
    expected = [0.1, 0.2, *(0.1 * (1 + math.cos(math.pi * step / 6)) for step in range(6))]
    assert rates == pytest.approx(expected, abs=1e-15)


def test_only_matrices_decay_and_every_parameter_is_in_one_group() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    optimizer = make_optimizer([list(model.parameters())], Optimizer(lr=0.1, weight_decay=0.3))
    decayed, free = optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert {id(parameter) for parameter in decayed["params"]} == {id(model[0].weight), id(model[2].weight)}
    assert {id(parameter) for parameter in free["params"]} == {
        id(model[1].weight),
        id(model[1].bias),
        id(model[2].bias),
    }


def test_the_frozen_do_not_move_and_vectors_do_not_shrink_without_gradient() -> None:
    model = nn.Linear(2, 2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer([list(model.parameters())], Optimizer(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(model.bias.detach(), before["bias"])


def test_muon_moves_a_matrix_by_its_orthogonalized_gradient_and_a_vector_as_adamw_does() -> None:
    """The first step: 0.2 sqrt(longer side) times a matrix with singular values near 1 (arXiv 2502.16982, 2.2)."""
    torch.manual_seed(0)
    model, config = nn.Linear(24, 8), Optimizer(lr=0.01, weight_decay=0.0, name="muon")
    before = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = make_optimizer([list(model.parameters())], config)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    moved = (before[0] - model.weight.detach()).double() / (config.lr * 0.2 * math.sqrt(24))
    left, _, right = torch.linalg.svd(model.weight.grad.double(), full_matrices=False)
    torch.testing.assert_close(torch.linalg.svdvals(moved), torch.ones(8, dtype=torch.double), atol=0.3, rtol=0)
    assert float((moved * (left @ right)).sum() / moved.norm() / math.sqrt(8)) > 0.98
    torch.testing.assert_close(before[1] - model.bias.detach(), 0.01 * model.bias.grad.sign(), rtol=1e-3, atol=0)
