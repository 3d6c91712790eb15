from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.optim import param_groups_layer_decay
from torch import nn

import histill.models.csat  # noqa: F401  (registers the models)
from histill.errors import InputError
from histill.models.attention import InertGrid, SpatialAttention
from histill.models.cost import measure_cost
from histill.models.segmenter import build_segmenter

pytestmark = pytest.mark.unit


def tiny(**options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("csat_tiny", pretrained=False, **options)


def tiles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_csat_has_the_published_size_at_384_px() -> None:
    cost = measure_cost(timm.create_model("csat", num_classes=1000), 384)
    assert 3.0e6 <= cost.parameters <= 3.1e6
    assert 1.06e9 <= cost.macs <= 1.10e9
    assert 1.40e9 <= cost.macs_with_attention <= 1.45e9


def test_csat_cost_at_224_px() -> None:
    cost = measure_cost(timm.create_model("csat", num_classes=1000), 224)
    assert cost.macs == pytest.approx(0.363e9, rel=0.01)
    assert cost.macs_with_attention == pytest.approx(0.405e9, rel=0.01)


def test_csat_tiny_is_small_and_has_every_kind_of_block() -> None:
    model = tiny()
    kinds = {type(module).__name__ for module in model.modules()}
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.3e6
    assert {"ConvBlock", "TransformerBlock", "LiveGrid"} <= kinds


@pytest.mark.parametrize(
    ("name", "strides"), [("csat", [4, 8, 16, 32]), ("csat_tiny", [4, 8, 16, 32]), ("csat_fine", [2, 4, 8, 16])]
)
def test_features_only_gives_four_strides(name: str, strides: list[int]) -> None:
    model = timm.create_model(name, features_only=True)
    channels = model.feature_info.channels()
    assert model.feature_info.reduction() == strides
    assert model.feature_info.module_name() == ["stages.0", "stages.1", "stages.2", "stages.3"]
    shapes = [tuple(feature.shape) for feature in model(tiles(1, 3, 64, 96))]
    assert shapes == [(1, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]


@pytest.mark.parametrize("side", [14, 28, 31, 56])
def test_csat_fine_sees_tiles_of_few_pixels(side: int) -> None:
    model = timm.create_model("csat_fine", num_classes=6)
    assert model(tiles(2, 3, side, side)).shape == (2, 6)
    assert model.forward_features(tiles(1, 3, side, side)).shape[-2:] == (-(-side // 16),) * 2
    assert measure_cost(timm.create_model("csat_fine", num_classes=6), 56).macs == pytest.approx(0.0478e9, rel=0.01)


def test_csat_fine_is_refused_as_the_encoder_of_a_unet() -> None:
    with pytest.raises(InputError, match="csat_fine"):
        build_segmenter("csat_fine", 2, (32, 24, 16, 16, 8))


@pytest.mark.parametrize("name", ["csat", "csat_tiny"])
def test_unet_encoder(name: str) -> None:
    network = smp.Unet(f"tu-{name}", encoder_weights=None, classes=2)
    assert network(tiles(2, 3, 64, 64)).shape == (2, 2, 64, 64)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 32), (96, 160), (224, 224)])
def test_sizes_divisible_by_32_work(height: int, width: int) -> None:
    assert tiny(num_classes=4)(tiles(2, 3, height, width)).shape == (2, 4)


@pytest.mark.parametrize(("height", "width"), [(33, 64), (64, 100), (16, 32), (14, 14), (28, 56), (1, 5)])
def test_other_sizes_are_padded_at_the_right_and_the_bottom(height: int, width: int) -> None:
    model = tiny(num_classes=4)
    assert model(tiles(2, 3, height, width)).shape == (2, 4)
    shapes = [tuple(feature.shape[-2:]) for feature in tiny(features_only=True)(tiles(1, 3, height, width))]
    assert shapes == [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]


def test_padding_is_zero_after_the_norm_and_no_row_is_lost() -> None:
    stage, odd = tiny().stages[1], tiles(1, 16, 5, 5)
    halved = stage.downsample(odd)
    norm, conv = stage.downsample
    expected = conv(F.pad(norm(odd), (0, 1, 0, 1)))
    assert torch.equal(halved, expected)
    assert torch.equal(stage.downsample(odd[..., :4, :4]), halved[..., :2, :2])


def test_intermediate_maps_are_those_of_features_only() -> None:
    features = tiny(features_only=True)
    model = tiny()
    batch = tiles(1, 3, 64, 64)
    last, maps = model.forward_intermediates(batch, indices=[1, 3])
    assert torch.equal(last, maps[1])
    for map_, expected in zip(maps, (features(batch)[1], features(batch)[3]), strict=True):
        torch.testing.assert_close(map_, expected)


def test_channels_last_gives_the_same_logits() -> None:
    model = tiny(num_classes=3).eval()
    batch = tiles(2, 3, 64, 64)
    expected = model(batch)
    got = model.to(memory_format=torch.channels_last)(batch.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_head() -> None:
    model = tiny(num_classes=5).eval()
    batch = tiles(2, 3, 64, 64)
    features = model.forward_features(batch)
    assert features.shape == (2, 64, 2, 2)
    assert model.forward_head(features, pre_logits=True).shape == (2, 64)
    assert torch.equal(model.forward_head(features), model(batch))
    assert model.get_classifier().out_features == 5


def test_reset_classifier() -> None:
    model = tiny(num_classes=5)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model.get_classifier().out_features == 7
    assert model(tiles(1, 3, 32, 32)).shape == (1, 7)
    model.reset_classifier(0)
    assert model(tiles(1, 3, 32, 32)).shape == (1, 64)


def gradients(model: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    out = model(batch)
    outputs = out if isinstance(out, list) else [out]
    sum(output.square().sum() for output in outputs).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("features_only", [False, True])
def test_gradient_checkpointing_recomputes_and_keeps_the_gradients(features_only: bool) -> None:
    batch = tiles(2, 3, 64, 64)
    expected = gradients(tiny(features_only=features_only, drop_path_rate=0.0), batch)
    model = tiny(features_only=features_only, drop_path_rate=0.0)
    calls = []
    block = next(module for module in model.modules() if isinstance(module, SpatialAttention))
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    model.set_grad_checkpointing(True)
    # timm's feature extractor does not checkpoint its first module (the stem) nor its last (stage 4)
    got = gradients(model, batch)
    assert len(calls) == 2
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, msg=name)


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny(num_classes=3)
    assert gradients(model, tiles(2, 3, 64, 64)).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("name", ["csat", "csat_fine", "csat_tiny"])
def test_untrained_stages_keep_the_scale_of_their_input(name: str) -> None:
    torch.manual_seed(0)
    smooth = F.interpolate(torch.randn(4, 3, 12, 12), size=96, mode="bicubic")
    for stage in timm.create_model(name, features_only=True)(smooth):
        assert 0.5 < stage.std() < 5


def test_drop_path_rises_with_depth_and_works() -> None:
    model = tiny(drop_path_rate=0.2)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.2)
    assert len(rates) == 6
    assert model(tiles(2, 3, 32, 32)).isfinite().all()


def test_positions_are_spared_from_weight_decay_and_layers_are_grouped() -> None:
    model = tiny()
    spared = model.no_weight_decay()
    assert len(spared) == 5
    assert spared <= dict(model.named_parameters()).keys()
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    assert len({group["lr_scale"] for group in groups}) == 9  # the stem, 7 blocks, and the head with the last norm


def test_the_gate_starts_close_to_one() -> None:
    torch.manual_seed(0)
    model = timm.create_model("csat").eval()
    gates: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, SpatialAttention):
            module.register_forward_hook(lambda _module, _args, gate: gates.append(gate.detach()))
    model(tiles(2, 3, 64, 64))
    assert len(gates) == 14
    assert max((gate - 1).abs().max().item() for gate in gates) < 0.2


def test_the_inert_transformer_adds_the_same_map_to_every_input() -> None:
    torch.manual_seed(0)
    grid = InertGrid().double()
    for parameter in grid.parameters():
        nn.init.normal_(parameter)
    inputs = torch.randn(6, 1, 7, 7, dtype=torch.float64) * 10
    added = grid(inputs) - inputs
    torch.testing.assert_close(added, added[:1].expand_as(added))
    assert added.abs().max() > 0.1


def test_inert_model_runs_and_an_unknown_kind_is_refused() -> None:
    assert tiny(spatial_attention="inert", num_classes=2)(tiles(1, 3, 64, 64)).shape == (1, 2)
    with pytest.raises(ValueError, match="'dead'"):
        tiny(spatial_attention="dead")
