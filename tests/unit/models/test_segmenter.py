from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from histill.errors import InputError
from histill.models.segmenter import build_segmenter, check_tile_size

pytestmark = pytest.mark.unit

DECODER = (32, 24, 16, 16, 8)


def tiles(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("encoder", ["csat_tiny", "csat", "resnet18"])
def test_logits_have_the_size_of_the_tile(encoder: str) -> None:
    logits = build_segmenter(encoder, 3, DECODER).eval()(tiles(2, 3, 64, 96))
    assert logits.shape == (2, 3, 64, 96)
    assert logits.dtype == torch.float32


def test_pixel_values_are_normalized_inside() -> None:
    model = build_segmenter("csat_tiny", 2, DECODER, mean=(0.7, 0.5, 0.6), std=(0.1, 0.2, 0.3)).eval()
    batch = tiles(2, 3, 32, 32)
    mean, std = np.array([0.7, 0.5, 0.6]), np.array([0.1, 0.2, 0.3])
    by_hand = (batch.numpy() / 255 - mean[:, None, None]) / std[:, None, None]
    expected = model.network(torch.from_numpy(by_hand).float())
    torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(batch.float()), model(batch))


def test_mean_and_std_travel_with_the_weights(tmp_path: Path) -> None:
    trained = build_segmenter("csat_tiny", 2, DECODER, mean=(0.7, 0.5, 0.6), std=(0.1, 0.2, 0.3)).eval()
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    loaded = build_segmenter("csat_tiny", 2, DECODER).eval()
    loaded.load_state_dict(load_file(tmp_path / "model.safetensors"))
    batch = tiles(1, 3, 32, 32)
    assert torch.equal(loaded(batch), trained(batch))


def test_half_precision_inside_gives_float32_logits() -> None:
    model = build_segmenter("csat_tiny", 2, DECODER)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(tiles(1, 3, 32, 32)).dtype == torch.float32


def test_a_csat_segmenter_has_no_batch_normalization() -> None:
    model = build_segmenter("csat_tiny", 2, DECODER)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    groups = [module for module in model.network.decoder.modules() if isinstance(module, nn.GroupNorm)]
    assert [group.num_channels for group in groups] == [width for width in DECODER for _ in range(2)]
    assert [group.num_groups for group in groups[::2]] == [4, 3, 2, 2, 1]


@pytest.mark.parametrize(("height", "width"), [(63, 64), (64, 100), (0, 32)])
def test_sizes_not_divisible_by_32_are_refused(height: int, width: int) -> None:
    with pytest.raises(InputError, match=f"{height} x {width} px .* divisible by 32"):
        check_tile_size(height, width)


def test_the_model_refuses_a_wrong_size() -> None:
    with pytest.raises(InputError, match="48 x 64 px"):
        build_segmenter("resnet18", 2, DECODER)(tiles(1, 3, 48, 64))


def test_an_unknown_encoder_is_answered_with_near_names() -> None:
    with pytest.raises(InputError, match=r"'csat_tinny' is not a timm model; did you mean csat_tiny"):
        build_segmenter("csat_tinny", 2, DECODER)
    with pytest.raises(InputError, match="list_models"):
        build_segmenter("?", 2, DECODER)


def test_an_encoder_without_feature_maps_is_refused() -> None:
    with pytest.raises(InputError, match="'vit_tiny_patch16_224'"):
        build_segmenter("vit_tiny_patch16_224", 2, DECODER)


def test_encoder_options_reach_the_encoder_and_unknown_ones_are_refused() -> None:
    model = build_segmenter("csat_tiny", 2, DECODER, encoder_options={"spatial_attention": "inert"})
    assert any(type(module).__name__ == "InertGrid" for module in model.modules())
    with pytest.raises(InputError, match="spatial_atention"):
        build_segmenter("csat_tiny", 2, DECODER, encoder_options={"spatial_atention": "inert"})


@pytest.mark.parametrize(("channels", "classes"), [((32, 16), 2), ((32, 24, 16, 16, 0), 2), (DECODER, 0)])
def test_an_impossible_decoder_is_refused(channels: tuple[int, ...], classes: int) -> None:
    with pytest.raises(InputError, match="5 positive widths"):
        build_segmenter("csat_tiny", classes, channels)


def test_the_model_traces_without_graph_breaks() -> None:
    model = build_segmenter("csat_tiny", 2, DECODER)
    batch = tiles(2, 3, 32, 32)
    # "eager" captures the graph as torch.compile does, without a compiler
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch), model(batch))
