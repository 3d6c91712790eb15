"""A network teacher: any segmentation network from a model folder."""

from dataclasses import dataclass

import torch
from torch import nn

from histill.artifacts.model_folder import load, resolve
from histill.config.common import Storage
from histill.errors import InputError
from histill.models.resolution import logits_of
from histill.teachers.teacher import seen_px


@dataclass(frozen=True)
class NetworkTeacher:
    """A trained segmentation network that answers at the tiles' own size; it normalises pixels itself.

    It sees a window of a tile at the resolution at which it sees a whole one: `size_px` for `tile_px`.
    """

    model: nn.Module
    classes: tuple[str, ...]
    digest: str
    mpp: float
    tile_px: int
    size_px: int

    @classmethod
    def load(cls, uri: str, storage: Storage, *, gpu: bool = False) -> "NetworkTeacher":
        """From a model folder or a finished run. Raises InputError when it is neither, or no segmenter."""
        model, card, digest = load(resolve(uri, storage), storage)
        if card.kind != "segmentation":
            raise InputError(
                f"teacher {uri} is a {card.kind} model; a segmentation model was expected, "
                "as trained by jobs/train_teacher.py."
            )
        model = model.requires_grad_(False).to("cuda" if gpu else "cpu")
        return cls(model, card.classes, digest, card.tile_mpp, card.tile_px, card.size_px)

    def sees(self, side_px: int) -> int:
        """The side at which the network sees a tile or window of `side_px`.

        Raises InputError when that is no whole number of pixels.
        """
        return seen_px(side_px, self.tile_px, self.size_px, self.digest[:12])

    @torch.inference_mode()
    def respond(self, tiles: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [B, K, S, S], for tiles or windows of tiles, uint8 [B, 3, S, S]."""
        device = next(self.model.parameters()).device
        return logits_of(self.model, tiles.to(device), self.sees(tiles.shape[-1]))
