"""CSAT, a small hybrid of convolution and attention, and its registration with timm.

After Kim et al., "RCKD: Response-Based Cross-Task Knowledge Distillation for Pathological Image Analysis",
Bioengineering 10(11):1279, 2023, doi 10.3390/bioengineering10111279. The paper states 3 M parameters and 1.08 G
multiply-accumulates, but neither stage widths nor input size, so widths and depths are our choice and match both
figures at 384 px (see `histill.models.cost` for how they are counted).

Importing this module registers `csat`, `csat_fine` and `csat_tiny` with timm.
"""

from itertools import accumulate
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, GlobalResponseNormMlp, LayerNorm2d, NormMlpClassifierHead, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from histill.models.attention import LiveGrid, SpatialAttention, SpatialAttentionKind, TransformerBlock


class Stem(nn.Module):
    """4x4 convolution of stride 4, or of stride 2 with overlaps, then LayerNorm."""

    def __init__(self, in_chans: int, channels: int, stride: Literal[2, 4]) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(in_chans, channels, 4, stride=stride, padding=(4 - stride) // 2)
        self.norm = LayerNorm2d(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.norm(self.conv(_pad(x, self.stride)))
        return features


class ConvBlock(nn.Module):
    """ConvNeXt V2 block (arXiv 2301.00808) gated by spatial attention: x <- x + DropPath(y * up(SA(y)))."""

    def __init__(self, channels: int, drop_path: float, spatial_attention: SpatialAttentionKind) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = GlobalResponseNormMlp(channels, 4 * channels)
        self.spatial_attention = SpatialAttention(spatial_attention)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.mlp(self.norm(y)).permute(0, 3, 1, 2)
        gated: Tensor = x + self.drop_path(y * self.spatial_attention(y))
        return gated


class Halving(nn.Sequential):
    """LayerNorm, then 2x2 convolution of stride 2; odd sides are zero-padded, so that any tile can be halved."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(LayerNorm2d(in_channels, eps=1e-6), nn.Conv2d(in_channels, channels, 2, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        norm, conv = self
        halved: Tensor = conv(_pad(norm(x), 2))
        return halved


class Stage(nn.Module):
    """Optional downsampling, then a sequence of blocks."""

    def __init__(self, in_channels: int, channels: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.downsample = Halving(in_channels, channels) if in_channels != channels else nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint_seq(self.blocks, x)
        x = self.blocks(x)
        return x


class CSAT(nn.Module):
    """Four stages of gated convolution blocks, optionally followed by transformer blocks.

    Takes float [B, in_chans, H, W] of any size; `forward` returns class logits [B, num_classes]. With
    `features_only=True` timm returns the four stages, at strides 4 to 32 (2 to 16 after a stem of stride 2). Maps with
    sides that do not divide are zero-padded at the right and bottom.

    Args:
        dims: channels of the stages, strictly increasing.
        conv_depths: gated convolution blocks of each stage.
        transformer_depths: transformer blocks at the end of each stage.
        heads: of the transformer blocks.
        head_dim: channels of each head.
        spatial_attention: "alive", or "inert" for the published form.
        stem_stride: 4, or 2 for small tiles.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: tuple[int, ...] = (32, 48, 96, 176),
        conv_depths: tuple[int, ...] = (2, 2, 6, 4),
        transformer_depths: tuple[int, ...] = (0, 0, 2, 2),
        heads: int = 8,
        head_dim: int = 32,
        spatial_attention: SpatialAttentionKind = "alive",
        stem_stride: Literal[2, 4] = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if spatial_attention not in ("alive", "inert"):
            raise ValueError(f"spatial_attention is {spatial_attention!r} but must be 'alive' or 'inert'.")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.stem = Stem(in_chans, dims[0], stem_stride)
        depths = [sum(pair) for pair in zip(conv_depths, transformer_depths, strict=True)]
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        starts = accumulate(depths, initial=0)
        stages = []
        for channels, previous, convs, depth, start in zip(
            dims, (dims[0], *dims[:-1]), conv_depths, depths, starts, strict=False
        ):
            blocks: list[nn.Module] = []
            for index, rate in enumerate(rates[start : start + depth]):
                if index < convs:
                    blocks.append(ConvBlock(channels, rate, spatial_attention))
                else:
                    blocks.append(TransformerBlock(channels, heads, head_dim, rate))
            stages.append(Stage(previous, channels, blocks))
        self.stages = nn.Sequential(*stages)
        self.feature_info = [
            {"num_chs": channels, "reduction": stem_stride * 2**index, "module": f"stages.{index}"}
            for index, channels in enumerate(dims)
        ]
        self.head = NormMlpClassifierHead(
            dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, norm_layer="layernorm2d"
        )
        if not self.stem.conv.weight.is_meta:  # smp first builds the network on the meta device for its shapes
            self.apply(_init_weights)
        _init_classifier(self.head.fc)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map, [B, dims[-1], H / s, W / s] with sides rounded up and s = 8 * stem_stride."""
        features: Tensor = self.stages(self.stem(x))
        return features

    def forward_intermediates(self, x: Tensor, indices: list[int]) -> tuple[Tensor, list[Tensor]]:
        """Return the last stage's map and those of the stages `indices` (from 0), as timm's models do."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return x, [maps[index] for index in indices]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, normalize and classify; `pre_logits=True` stops before the classifier, at [B, dims[-1]]."""
        logits: Tensor = self.head(x, pre_logits=pre_logits)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        classifier: nn.Module = self.head.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier with a new one; with 0 classes the model returns pooled features."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        _init_classifier(self.head.fc)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the learned positions; timm already excludes biases and norms."""
        return {name for name, _ in self.named_parameters() if name.endswith("grid.position")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter groups, for layer-wise learning rates."""
        if coarse:
            return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
        downsample = (r"^stages\.(\d+)\.downsample", (0,))
        return {"stem": r"^stem", "blocks": [downsample, (r"^stages\.(\d+)\.blocks\.(\d+)", None)]}


def _pad(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad `x` [B, C, H, W] at the right and bottom to sides divisible by `multiple`."""
    height, width = x.shape[-2:]
    right, bottom = -width % multiple, -height % multiple
    return F.pad(x, (0, right, 0, bottom)) if right or bottom else x


def _init_weights(module: nn.Module) -> None:
    """Initialize with variance 1 / fan-in (LeCun et al., "Efficient BackProp", 1998), which preserves the scale.

    The usual 0.02 of wide networks is a fifth of that here: Adam's first steps at 1e-3 then change the weights by a
    twentieth of their size, and learning stalls. `nn.Module.apply` visits children first, so `LiveGrid` overrides the
    initialization of its own layers.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, LiveGrid):
        module.init_weights()


def _init_classifier(module: nn.Module) -> None:
    """Initialize small, so that all classes start about equally likely."""
    if isinstance(module, nn.Linear):  # with 0 classes it is an identity
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _default_cfg() -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 384, 384),
        "min_input_size": (3, 32, 32),
        "pool_size": (12, 12),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
    }


# timm looks up the configurations by this name in the module of the registered function
default_cfgs = generate_default_cfgs({name: _default_cfg() for name in ("csat", "csat_fine", "csat_tiny")})


def _build(variant: str, pretrained: bool, **kwargs: Any) -> CSAT:
    feature_cfg = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
    model: CSAT = build_model_with_cfg(CSAT, variant, pretrained, feature_cfg=feature_cfg, **kwargs)
    return model


@register_model
def csat(pretrained: bool = False, **kwargs: Any) -> CSAT:
    """CSAT: 3.1 M parameters with 1000 classes, 1.07 GMACs at 384 px (convolutions and linear layers)."""
    return _build("csat", pretrained, **kwargs)


@register_model
def csat_fine(pretrained: bool = False, **kwargs: Any) -> CSAT:
    """CSAT for small tiles: 1.7 M parameters with 1000 classes, 0.048 GMACs at 56 px.

    At 56 px CSAT has 14 x 14 patches, and its deep stages only 4 x 4 and 2 x 2. Here the stem has stride 2, so that all
    stages have twice the resolution, at half the depth. Its maps have strides 2 to 16, so it cannot be the encoder of a
    U-Net.
    """
    sizes: dict[str, Any] = {
        "stem_stride": 2,
        "dims": (24, 48, 96, 176),
        "conv_depths": (1, 1, 3, 2),
        "transformer_depths": (0, 0, 1, 1),
    }
    return _build("csat_fine", pretrained, **{**sizes, **kwargs})


@register_model
def csat_tiny(pretrained: bool = False, **kwargs: Any) -> CSAT:
    """CSAT at a thirteenth of its size, for tests and demos on a CPU."""
    sizes: dict[str, Any] = {
        "dims": (16, 24, 40, 64),
        "conv_depths": (1, 1, 2, 1),
        "transformer_depths": (0, 0, 1, 1),
        "heads": 4,
        "head_dim": 16,
    }
    return _build("csat_tiny", pretrained, **{**sizes, **kwargs})
