"""The embeddings of a batch's tiles by each teacher: cached ones that the batch brings, or those of live teachers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from histill.stream.tile_batch import TileBatch
from histill.teachers.teacher import TOKENS, Teacher


@dataclass(frozen=True)
class EmbeddingSource:
    """One teacher's embeddings and how they are normalized: (embedding - mean) * scale."""

    weight: float
    width: int
    live: Teacher | None = None  # None: batches bring its cached embeddings
    mean: tuple[float, ...] | None = None  # [D]; None: 0
    scale: float = 1.0

    def normalize(self, embeddings: Tensor) -> Tensor:
        """Center and scale embeddings, float [B, D]."""
        if self.mean is None:
            return embeddings * self.scale
        return (embeddings - embeddings.new_tensor(self.mean)) * self.scale


@dataclass(frozen=True)
class Embeddings:
    """All teachers of embeddings, by name."""

    sources: Mapping[str, EmbeddingSource]
    tokens: bool = False  # whether a term compares their token maps

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each teacher."""
        return {name: source.weight for name, source in self.sources.items()}

    def answer(self, batch: TileBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Normalized embeddings, float32 [B, D], and token maps, float32 [B, C, h, w], by teacher."""
        embeddings: dict[str, Tensor] = {}
        tokens = dict(batch.tokens)
        for name, source in self.sources.items():
            if source.live is None:
                found = batch.embeddings[name]
            else:
                found, token_map = self._ask(source.live, batch)
                if token_map is not None:
                    tokens[name] = token_map
            embeddings[name] = source.normalize(found)
        return embeddings, tokens

    def _ask(self, teacher: Teacher, batch: TileBatch) -> tuple[Tensor, Tensor | None]:
        if batch.teacher is None:
            raise RuntimeError("the batch has no view for a live teacher of embeddings")
        with torch.no_grad():
            if self.tokens and teacher.features is not None:
                found, maps = teacher.features.respond_with_maps(batch.teacher, (TOKENS,))
                return found.to(batch.teacher.device), maps[TOKENS].to(batch.teacher.device)
            return teacher.respond(batch.teacher).to(batch.teacher.device), None
