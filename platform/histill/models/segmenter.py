"""Segmenters: a U-Net on any timm encoder, from raw pixel values to class logits."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

import histill.models.csat
import histill.models.gn_resnet  # noqa: F401  (both register their models with timm)
from histill.errors import InputError
from histill.models.group_norm_unet import GroupNormUnet

STRIDE = 32
DECODER_BLOCKS = 5


class Segmenter(nn.Module):
    """A segmentation network with its input normalization inside.

    Takes uint8 or float [B, 3, H, W] with values in 0..255, H and W divisible by 32 (else `InputError`);
    returns float32 logits [B, K, H, W]. `mean` and `std`, in 0..1 per channel, are buffers, so they are saved
    with the weights.
    """

    network: smp.Unet
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: smp.Unet,
        encoder_name: str,
        encoder_options: Mapping[str, Any],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.network = network
        self.encoder_name = encoder_name
        self.encoder_options = dict(encoder_options)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, tiles: Tensor) -> Tensor:
        return self.logits(self.features(tiles))

    def features(self, tiles: Tensor) -> list[Tensor]:
        """The encoder's feature maps of `tiles`, from stride 1 (the normalized tiles) to stride 32."""
        check_tile_size(*tiles.shape[-2:])
        maps: list[Tensor] = self.network.encoder(self.normalized(tiles))
        return maps

    def normalized(self, tiles: Tensor) -> Tensor:
        """The normalized input of the network."""
        return (tiles.to(self.mean.dtype) / 255 - self.mean) / self.std

    def logits(self, features: list[Tensor]) -> Tensor:
        """The decoder's logits from the encoder's feature maps."""
        logits: Tensor = self.network.segmentation_head(self.network.decoder(features))
        return logits.float()


def check_tile_size(height: int, width: int) -> None:
    """Raise `InputError` unless both sides of a tile, in pixels, are positive multiples of 32."""
    if height <= 0 or width <= 0 or height % STRIDE or width % STRIDE:
        raise InputError(
            f"Tiles of {height} x {width} px do not fit the model, which needs sides divisible by {STRIDE}; "
            "choose another tile or student size.",
            code="size-does-not-fit",
        )


def build_segmenter(
    encoder: str,
    classes: int,
    decoder_channels: tuple[int, ...],
    *,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    encoder_options: Mapping[str, Any] | None = None,
) -> Segmenter:
    """Build an untrained U-Net (arXiv 1505.04597) on a timm encoder.

    The decoder uses GroupNorm (arXiv 1803.08494) instead of BatchNorm, so a tile's logits and gradients depend
    neither on the other tiles of its batch, nor on padded rows, nor on how many workers share a batch. With CSAT, which
    normalizes per position and per tile, this holds for the whole network; an encoder with BatchNorm (resnet18, ...)
    keeps it, and mixes the rows of a batch in training.

    Args:
        encoder: a timm model name, such as "csat" or "resnet18".
        classes: number K of classes, class 0 being the background.
        decoder_channels: widths of the five decoder blocks, coarsest first.
        mean: of each channel in 0..1, subtracted from the input.
        std: of each channel in 0..1, by which it is divided.
        encoder_options: keyword arguments of the encoder, such as CSAT's `spatial_attention`.

    Raises:
        InputError: for an unknown or unusable encoder, or a decoder without exactly five blocks.
    """
    check_encoder(encoder)
    options = dict(encoder_options or {})
    if len(decoder_channels) != DECODER_BLOCKS or min(decoder_channels) < 1 or classes < 1:
        raise InputError(
            f"decoder_channels {list(decoder_channels)} with {classes} classes cannot be built; give "
            f"{DECODER_BLOCKS} positive widths, coarsest first, and at least one class.",
            code="encoder-unusable",
        )
    try:
        network = GroupNormUnet(
            encoder_name=f"tu-{encoder}",
            encoder_weights=None,
            decoder_channels=decoder_channels,
            classes=classes,
            **options,
        )
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"Encoder '{encoder}' with options {options} gives no feature maps for a "
            f"U-Net ({error}); choose a convolutional or hierarchical timm model and options that it takes.",
            code="encoder-unusable",
        ) from error
    return Segmenter(network, encoder, options, mean, std)


def check_encoder(encoder: str) -> None:
    if timm.is_model(encoder):
        return
    near = difflib.get_close_matches(encoder, timm.list_models(), n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models() for the names."
    raise InputError(f"Encoder '{encoder}' is not a timm model; {hint}", code="encoder-unknown")
