"""Training-only projections of a student's embedding and last feature map to its teachers' widths."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class EmbeddingShape:
    """What one teacher answers."""

    width: int  # D of its embeddings
    token_channels: int | None = None  # C of its token maps; None: they are not learned from


class EmbeddingHeads(nn.Module):
    """A linear layer on the embedding for each teacher, and a 1x1 convolution on the last map for its tokens."""

    def __init__(self, width: int, channels: int, teachers: Mapping[str, EmbeddingShape]) -> None:
        """Heads for embeddings [B, width] and last maps [B, channels, h, w]."""
        super().__init__()
        self.embeddings = nn.ModuleDict({name: nn.Linear(width, each.width) for name, each in teachers.items()})
        self.tokens = nn.ModuleDict(
            {
                name: nn.Conv2d(channels, each.token_channels, 1)
                for name, each in teachers.items()
                if each.token_channels is not None
            }
        )

    def forward(self, embedding: Tensor, last_map: Tensor | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Projected embeddings [B, D] and projected maps [B, C, h, w], by teacher."""
        embeddings = {name: head(embedding) for name, head in self.embeddings.items()}
        if last_map is None:
            return embeddings, {}
        return embeddings, {name: head(last_map) for name, head in self.tokens.items()}
