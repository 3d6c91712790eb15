"""What a student learns beside itself while it is held against a teacher: how to compare their layers."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn, ones

from histill.models.encoders import Model
from histill.models.layers import layer_channels, with_maps

Pair = tuple[str, str]
"""A layer of the student and one of the teacher."""


@dataclass(frozen=True)
class Layers:
    """Which feature maps are compared. Small: it is sent to every worker."""

    student: tuple[str, ...] = ()  # as they are
    teacher: tuple[str, ...] = ()
    pairs: tuple[tuple[Pair, int], ...] = ()  # brought to the width of the teacher's, which is given, in channels
    mixed: tuple[Pair, ...] = ()  # those of the pairs that share one learned mixture
    last: Pair = ("", "")  # the last of each, where any are compared


class Answers(NamedTuple):
    """What a student in training says of a batch."""

    logits: Tensor  # [B, K] or [B, K, H, W]
    maps: dict[str, Tensor]  # by layer, [B, C, h, w]
    projected: dict[Pair, Tensor]  # by pair, at the teacher's number of channels
    mixture: Tensor | None  # [len(mixed)]


class Matching(nn.Module):
    """A student with learned projections of its layers, to be trained in the student's place.

    In training mode it returns `Answers`, in evaluation mode the student's logits alone. What is scored and kept is
    `model`. A projection is a 1x1 convolution, or nothing where the widths are equal.
    """

    def __init__(self, model: Model, layers: Layers) -> None:
        super().__init__()
        self.model, self.layers = model, layers
        own = layer_channels(model)
        self.projections = nn.ModuleList(
            nn.Identity() if own[layer] == width else nn.Conv2d(own[layer], width, 1)
            for (layer, _), width in layers.pairs
        )
        self.mixture = nn.Parameter(ones(len(layers.mixed))) if layers.mixed else None

    def forward(self, tiles: Tensor) -> Tensor | Answers:
        if not self.training:
            logits: Tensor = self.model(tiles)
            return logits
        pairs = [pair for pair, _ in self.layers.pairs]
        seen = tuple(dict.fromkeys((*self.layers.student, *(layer for layer, _ in pairs))))
        logits, maps = with_maps(self.model, tiles, seen)
        projected = {pair: project(maps[pair[0]]) for pair, project in zip(pairs, self.projections, strict=True)}
        return Answers(logits, {layer: maps[layer] for layer in self.layers.student}, projected, self.mixture)
