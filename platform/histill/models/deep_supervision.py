"""Deep supervision: extra heads on the deepest stages of a segmenter's encoder during training.

A U-Net finds small nuclei with its shallow stages, whose maps bypass the deep ones through the skip connections, so
pretraining on nuclei leaves the deep stages nearly unchanged; yet these are what a classifier is fine-tuned on.
Therefore each of them gets a head too (Lee et al., "Deeply-Supervised Nets", arXiv 1409.5185). The head is a linear
function of one position's features, so that the knowledge of the tile's nuclei has to be in the features.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from histill.models.segmenter import Segmenter

STRIDES = (16, 32)
ANSWER_STRIDE = 4


def deep_heads(model: Segmenter, classes: int) -> nn.ModuleList:
    """Build a head for each encoder stage of stride 16 and 32, with logits [B, K, H / 4, W / 4]."""
    channels = model.network.encoder.out_channels[-len(STRIDES) :]
    return nn.ModuleList(_head(*each, classes) for each in zip(channels, STRIDES, strict=True))


def answer_deep(heads: nn.ModuleList, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The heads' logits, float32, from the `features` of all stages."""
    return tuple(head(stage).float() for head, stage in zip(heads, features[-len(STRIDES) :], strict=True))


def _head(channels: int, stride: int, classes: int) -> nn.Module:
    """A head with logits at stride 4 from one stage: each position predicts the square of pixels that it covers."""
    scale = stride // ANSWER_STRIDE
    return nn.Sequential(nn.GroupNorm(1, channels), nn.Conv2d(channels, classes * scale**2, 1), nn.PixelShuffle(scale))
