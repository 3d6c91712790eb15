"""Deep supervision: the deepest stages of a segmenter's encoder answer by themselves while it trains.

A U-Net finds small nuclei with its shallow stages, whose maps go round the deep ones by the skip connections, so that
a student pretrained on nuclei leaves its deep stages nearly as they were; but these are what a classifier is fine-tuned
on. So each of them has to answer, too (Lee et al., "Deeply-Supervised Nets", arXiv 1409.5185), through a head that is a
linear function of one position's features: what they know of the tile's nuclei, then, lies in the features.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from histill.models.segmenter import Segmenter

STRIDES = (16, 32)
ANSWER_STRIDE = 4


def deep_heads(model: Segmenter, classes: int) -> nn.ModuleList:
    """A head for each of the encoder's stages of strides 16 and 32: to logits [B, K, H / 4, W / 4]."""
    channels = model.network.encoder.out_channels[-len(STRIDES) :]
    return nn.ModuleList(_head(*each, classes) for each in zip(channels, STRIDES, strict=True))


def answer_deep(heads: nn.ModuleList, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The heads' logits, float32, from all stages' `features`."""
    return tuple(head(stage).float() for head, stage in zip(heads, features[-len(STRIDES) :], strict=True))


def _head(channels: int, stride: int, classes: int) -> nn.Module:
    """Logits of stride 4 from one stage: each position gives those of the square of pixels that it stands for."""
    scale = stride // ANSWER_STRIDE
    return nn.Sequential(nn.GroupNorm(1, channels), nn.Conv2d(channels, classes * scale**2, 1), nn.PixelShuffle(scale))
