import dataclasses

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histill.models.cost import Cost, measure_cost, measure_speed
from histill.models.segmenter import build_segmenter

pytestmark = pytest.mark.unit


def test_a_convolution() -> None:
    cost = measure_cost(nn.Conv2d(3, 8, 5, stride=2, padding=2), 16)
    assert cost == Cost(3 * 8 * 25 + 8, 8 * 8 * 8 * 3 * 25, 8 * 8 * 8 * 3 * 25, 16)


def test_a_grouped_convolution() -> None:
    assert measure_cost(nn.Conv2d(6, 12, 3, groups=3), 10, channels=6).macs == 8 * 8 * 12 * 2 * 9


def test_a_transposed_convolution() -> None:
    # every one of the 16 x 16 x 4 inputs is spread by a 6 x 2 x 2 filter
    assert measure_cost(nn.ConvTranspose2d(4, 6, 2, stride=2), 16, channels=4).macs == 16 * 16 * 4 * 6 * 4


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_linear_layer_on_any_layout_is_not_attention(bias: bool, frozen: bool) -> None:
    class PerPixel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 7, bias=bias).requires_grad_(not frozen)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.permute(0, 2, 3, 1)) + self.linear(x.flatten(2).transpose(1, 2)).sum()

    cost = measure_cost(PerPixel(), 4, channels=5)
    assert cost.macs == cost.macs_with_attention == 2 * 16 * 5 * 7


class Attention(nn.Module):
    """One head of 6 over the 16 positions of a 4 x 4 tile."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        if self.fused:
            return F.scaled_dot_product_attention(tokens[:, None], tokens[:, None], tokens[:, None])
        return (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens


@pytest.mark.parametrize("fused", [True, False])
def test_attention_products_count_in_one_convention_only(fused: bool) -> None:
    assert measure_cost(Attention(fused), 4, channels=6) == Cost(0, 0, 2 * 16 * 16 * 6, 4)


def test_multi_head_attention_module() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            return self.attention(tokens, tokens, tokens, need_weights=False)[0]

    cost = measure_cost(Block(), 4, channels=8)
    assert cost.macs == 16 * 8 * 8 * 4
    assert cost.macs_with_attention - cost.macs == 2 * 16 * 16 * 8


def test_calls_that_other_load_delays_do_not_count_as_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven of eight calls are hit: the time is that of the eighth."""
    clock, calls = [0.0], iter(range(10**6))

    class Delayed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            clock[0] += 0.004 if next(calls) % 8 == 7 else 1.016
            return x

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    found = measure_speed(Delayed(), 8, torch.device("cpu"))
    assert (found["ms_at_batch_1"], found["ms_at_batch_32"], found["tiles_per_s"]) == (4.0, 4.0, 8000.0)


@pytest.mark.parametrize(("threads", "said"), [(1, "CPU, 1 thread"), (4, "CPU, 4 threads")])
def test_the_device_is_named(threads: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    assert measure_speed(nn.Identity(), 8, torch.device("cpu"))["device"] == said


def test_a_known_network() -> None:
    cost = measure_cost(timm.create_model("resnet18", num_classes=1000), 224)
    assert cost.parameters == 11_689_512
    assert cost.macs == 1_814_073_344


@pytest.mark.parametrize("frozen", [True, False])
def test_a_segmenter_counts_its_encoder_and_decoder(frozen: bool) -> None:
    model = build_segmenter("csat_tiny", 3, (256, 128, 64, 32, 16)).requires_grad_(not frozen)
    cost = measure_cost(model, 384)
    assert (cost.macs, cost.macs_with_attention) == (4_863_715_866, 4_909_029_482)


def test_a_batched_product_with_a_weight_counts_as_attention() -> None:
    class PerGroup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 4, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(x.unflatten(1, (3, 4)).flatten(3)[0].mT, self.weight)

    assert measure_cost(PerGroup(), 2, channels=12) == Cost(60, 0, 3 * 4 * 4 * 5, 2)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    model[0].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_cost(model, 8)
    assert model.training
    assert not model[0].weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_cost_names_both_conventions_and_the_size() -> None:
    cost = Cost(3_085_986, 1_066_781_948, 1_428_000_000, 384)
    assert str(cost) == (
        "3.09 M parameters; at 384 px 1.067 GMACs (convolutions and linear layers), 1.428 GMACs with attention products"
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        cost.macs = 0  # type: ignore[misc]
