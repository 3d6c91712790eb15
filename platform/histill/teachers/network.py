"""A network teacher: any segmentation network from a model folder."""

from dataclasses import dataclass

import torch
from torch import nn

from histill.artifacts.model_folder import load, resolve
from histill.config.common import Storage
from histill.models.resolution import logits_of


@dataclass(frozen=True)
class NetworkTeacher:
    """A trained segmentation network that answers at the tiles' own size."""

    model: nn.Module
    classes: tuple[str, ...]
    digest: str
    mpp: float
    size_px: int

    @classmethod
    def load(cls, uri: str, storage: Storage) -> "NetworkTeacher":
        """From a model folder or a finished run. Raises InputError when it is neither."""
        model, card, digest = load(resolve(uri, storage), storage)
        return cls(model.requires_grad_(False), card.classes, digest, card.tile_mpp, card.size_px)

    @torch.inference_mode()
    def respond(self, tiles: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [B, K, H, W], for tiles, uint8 [B, 3, H, W]."""
        device = next(self.model.parameters()).device
        return logits_of(self.model, tiles.to(device), self.size_px)
