"""A teacher's responses to a batch, from the response cache or from a live teacher."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from histill.losses.layers import Layers
from histill.models.resample import LEAST, resize_logits, resize_tiles
from histill.outputs import OutputSpec
from histill.stream.responses import levels_to_logits
from histill.stream.tile_batch import TileBatch
from histill.teachers.teacher import Teacher


@dataclass(frozen=True)
class Responses:
    """The source of the responses. A live teacher sees its own view of each tile."""

    teacher: Teacher | None  # live; None: batches carry cached responses
    layers: Layers = field(default_factory=Layers)  # whose maps are compared
    at_input_size: bool = False  # the teacher's view already has the network's input size, not the tile's

    def answer(
        self, batch: TileBatch, outputs: OutputSpec, size_px: int | None = None, *, graph: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, those of pixels at `size_px` or at the teacher's size, and the feature maps to compare.

        `outputs` are the teacher's. With `graph`, a live network's logits are differentiable with respect to its maps.
        """
        if batch.response is not None:
            levels, maps = batch.response, {} if batch.map is None else {self.layers.last[1]: batch.map}
            if outputs.dense:
                return logits_of_levels(levels, size_px or levels.shape[-1], outputs), maps
            return outputs.unpack(levels_to_logits(levels))[:, :, 0, 0], maps
        if self.teacher is None or batch.teacher is None:
            raise RuntimeError("the batch brings no response, and there is no teacher to ask")
        if self.at_input_size and self.teacher.features is not None:
            logits, maps = self.teacher.features.forward(batch.teacher, self.layers.teacher, graph=graph)
        else:
            logits, maps = self.teacher.respond(batch.teacher).to(batch.teacher.device), {}
        return (resize_logits(logits, size_px) if outputs.dense and size_px else logits), maps


def logits_of_levels(levels: Tensor, size_px: int, outputs: OutputSpec) -> Tensor:
    """A segmenter's cached levels, uint8 [B, K - 1, H, W], as logits, float32 [B, K, size_px, size_px].

    Equals `resize_logits` of the full logits, in a sixth of the time when shrinking: the full-size work is done in
    place and without a channel of zeros for class 0.
    """
    relative = levels_to_logits(levels)
    if size_px >= levels.shape[-1]:
        return resize_logits(outputs.unpack(relative), size_px)
    odds = relative.exp_()  # of each class relative to class 0; at most e^10
    others = resize_tiles(odds.div_(odds.sum(1, keepdim=True).add_(1)), size_px)
    return torch.cat([1 - others.sum(1, keepdim=True), others], 1).clamp_min_(LEAST).log_()
