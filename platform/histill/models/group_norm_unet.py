"""A U-Net of segmentation_models_pytorch (smp) whose decoder normalizes by groups of channels."""

import math
from typing import Any

import segmentation_models_pytorch as smp
from torch import nn

CHANNELS_PER_GROUP = 8


class GroupNormUnet(smp.Unet):
    """smp's U-Net (arXiv 1505.04597) with GroupNorm (arXiv 1803.08494) in place of its decoder's BatchNorm.

    smp's own `decoder_use_norm` has no GroupNorm. Its arguments are those of `smp.Unet`, by name. Importing this module
    lets `smp.from_pretrained` open a folder that `save_pretrained` wrote.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        _normalize_by_groups(self.decoder)


def _normalize_by_groups(decoder: nn.Module) -> None:
    """Replace each BatchNorm with a GroupNorm."""
    for module in list(decoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                channels = child.num_features
                groups = math.gcd(channels, max(1, channels // CHANNELS_PER_GROUP))
                setattr(module, name, nn.GroupNorm(groups, channels))


smp.GroupNormUnet = GroupNormUnet  # smp finds a saved model's class by its name there
