"""The network of the resolution distillation paper: a ResNet of four basic blocks with GroupNorm.

DiPalma et al., "Resolution-Based Distillation for Efficient Histology Image Classification", Artificial Intelligence in
Medicine 119:102136 (2021), doi 10.1016/j.artmed.2021.102136, whose public code has basic blocks of 32, 64, 128 and 256
planes. The number of groups is our choice. The implementation is timm's ResNet.

Importing this module registers `resnet_gn` with timm.
"""

from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import GroupNorm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet

GROUPS = 8

default_cfgs = generate_default_cfgs(
    {
        "resnet_gn": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "conv1",
            "classifier": "fc",
        }
    }
)


@register_model
def resnet_gn(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """The resolution distillation paper's network: 1.2 M parameters without a classifier."""
    sizes: dict[str, Any] = {
        "block": BasicBlock,
        "layers": (1, 1, 1, 1),
        "channels": (32, 64, 128, 256),
        "norm_layer": partial(GroupNorm, num_groups=GROUPS),
    }
    model: ResNet = build_model_with_cfg(ResNet, "resnet_gn", pretrained, **{**sizes, **kwargs})
    return model
