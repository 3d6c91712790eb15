from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histill.losses.logits import cross_entropy
from histill.models.attention import SpatialAttention
from histill.models.segmenter import build_segmenter

pytestmark = pytest.mark.behaviour


def spatial_attention(kind: str) -> SpatialAttention:
    torch.manual_seed(0)
    model = timm.create_model("csat_tiny", spatial_attention=kind).double()
    return next(module for module in model.modules() if isinstance(module, SpatialAttention))


def far_gradient(attention: SpatialAttention) -> Tensor:
    """Gradient of the map at grid position (0, 0) with respect to the features, [C, 28, 28].

    The 7x7 convolution reaches 3 positions, so position (6, 6) can only act through the transformer.
    """
    features = torch.randn(1, 16, 28, 28, dtype=torch.float64, requires_grad=True)
    attention.grid_map(features)[0, 0, 0, 0].backward()
    assert features.grad is not None
    return features.grad[0]


def test_live_attention_at_one_end_depends_on_the_other_end() -> None:
    gradient = far_gradient(spatial_attention("alive"))
    assert gradient[:, 24:, 24:].abs().max() > 1e-9
    reached = F.max_pool2d(gradient.abs().amax(0)[None], 4)[0] > 0
    assert reached.all(), "every grid position of the input must act on the map at (0, 0)"


def test_inert_attention_does_not_see_past_the_convolution() -> None:
    gradient = far_gradient(spatial_attention("inert"))
    assert gradient[:, :16, :16].abs().max() > 0
    assert (gradient[:, 16:, :] == 0).all()
    assert (gradient[:, :, 16:] == 0).all()


@pytest.mark.parametrize(("kind", "changes"), [("alive", True), ("inert", False)])
def test_changing_one_end_of_the_grid_moves_the_map_at_the_other(kind: str, changes: bool) -> None:
    attention = spatial_attention(kind)
    features = torch.randn(1, 16, 28, 28, dtype=torch.float64)
    before = attention.grid_map(features)[0, 0, 0, 0].item()
    features[:, :, 24:, 24:] += 5
    after = attention.grid_map(features)[0, 0, 0, 0].item()
    assert (abs(after - before) > 1e-9) is changes


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["alive", "inert"])
def test_a_tile_has_the_same_logits_alone_and_in_any_batch(training: bool, kind: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("csat_tiny", num_classes=4, spatial_attention=kind).double().train(training)
    batch = torch.randn(5, 3, 64, 96, dtype=torch.float64)
    together = model(batch)
    alone = torch.cat([model(tile[None]) for tile in batch])
    other_company = model(torch.cat([batch[:1], 100 * torch.randn_like(batch)]))[:1]
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(together[:1], other_company, rtol=1e-9, atol=1e-11)


def test_a_training_csat_segmenter_keeps_tiles_apart() -> None:
    torch.manual_seed(0)
    model = build_segmenter("csat_tiny", 2, (32, 24, 16, 16, 8)).train()
    batch = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    together = model(batch)
    alone = torch.cat([model(tile[None]) for tile in batch])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    gradient = torch.autograd.grad(together[0].square().sum(), model.network.segmentation_head[0].weight)[0]
    first = torch.autograd.grad(model(batch[:1])[0].square().sum(), model.network.segmentation_head[0].weight)[0]
    torch.testing.assert_close(gradient, first, rtol=1e-3, atol=1e-3)


def train(model: nn.Module, loss: Callable[[Any], Tensor], steps: int) -> float:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0)
    value = torch.tensor(float("inf"))
    for _ in range(steps):
        value = loss(model)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return value.item()


def test_csat_tiny_learns_eight_tiles_by_heart() -> None:
    torch.manual_seed(0)
    model = timm.create_model("csat_tiny", num_classes=8)
    batch, labels = torch.randn(8, 3, 64, 64), torch.arange(8)
    start = F.cross_entropy(model(batch), labels).item()
    assert start == pytest.approx(2.08, abs=0.3)
    end = train(model, lambda m: F.cross_entropy(m(batch), labels), 60)
    assert end < 0.05


def test_a_csat_tiny_segmenter_learns_where_eight_discs_are() -> None:
    torch.manual_seed(0)
    model = build_segmenter("csat_tiny", 2, (32, 24, 16, 16, 8))
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centers = torch.randint(16, 48, (8, 2))
    masks = torch.stack([((rows - y) ** 2 + (columns - x) ** 2 < 144).long() for y, x in centers])
    shade = torch.where(masks[:, None] == 1, 90, 200) + torch.randint(-30, 31, (8, 3, 64, 64))
    tiles, valid = shade.to(torch.uint8), torch.ones(8, dtype=torch.bool)
    end = train(model, lambda m: cross_entropy(m(tiles), masks, valid), 100)
    assert end < 0.08


def test_the_live_attention_learns_what_the_inert_one_cannot() -> None:
    features = torch.randn(4, 16, 28, 28, generator=torch.Generator().manual_seed(1))
    target = torch.rand(4, 1, 7, 7, generator=torch.Generator().manual_seed(2)) * 2
    ends = {}
    for kind in ("alive", "inert"):
        attention = spatial_attention(kind).float()
        ends[kind] = train(attention, lambda m: F.mse_loss(m.grid_map(features), target), 400)
    assert ends["alive"] < 0.4 * ends["inert"], ends
