"""Training-only projections of a student's embedding and last feature map to its teachers' widths."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class EmbeddingShape:
    """What is learned from one teacher."""

    width: int | None = None  # D of its embeddings; None: no term compares them through a projection
    token_channels: int | None = None  # C of its token maps; None: no term compares them


@dataclass(frozen=True)
class HeadSpec:
    """The heads of a student. Small: it is sent to every worker."""

    teachers: Mapping[str, EmbeddingShape] = field(default_factory=dict)  # by name
    projection: Literal["linear", "mlp"] = "linear"
    prefixes: tuple[int, ...] = ()  # lengths of the prefixes with projections of their own, ascending


class Projected(NamedTuple):
    """A student's embedding, or a prefix of it, and its projections."""

    embedding: Tensor  # float [B, D] or [B, m]
    by_teacher: dict[str, Tensor]  # float [B, the teacher's D]


class EmbeddingHeads(nn.Module):
    """A projection of the embedding for each teacher, and a 1x1 convolution of the last map for its tokens.

    Both see their input normalized over the batch. Embeddings of tiles share most of what they are, and teachers'
    embeddings are centered: without normalization a student first learns the one best answer to all tiles, and its
    embeddings lose what tells tiles apart (docs/results/embeddings.md).

    With prefixes, the first m dimensions of the embedding have projections of their own (Matryoshka representations,
    Kusupati et al., arXiv 2205.13147, section 3, with regression of a teacher in the place of classification).
    """

    def __init__(self, width: int, channels: int, spec: HeadSpec) -> None:
        """Heads for embeddings [B, width] and last maps [B, channels, h, w]."""
        super().__init__()
        self.spec = spec
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.embeddings = _projections(width, spec)
        self.tokens = nn.ModuleDict(
            {
                _key(name): nn.Conv2d(channels, each.token_channels, 1)
                for name, each in spec.teachers.items()
                if each.token_channels is not None
            }
        )
        self.map_norm = nn.BatchNorm2d(channels, affine=False) if self.tokens else None
        self.nested = nn.ModuleList(_projections(length, spec) for length in spec.prefixes)

    def forward(self, embedding: Tensor) -> tuple[Projected, ...]:
        """The projected embedding, then its projected prefixes."""
        lengths, normalized = (embedding.shape[1], *self.spec.prefixes), self._normalize(embedding)
        return tuple(
            Projected(embedding[:, :length], {_name(key): head(normalized[:, :length]) for key, head in heads.items()})
            for length, heads in zip(lengths, (self.embeddings, *self.nested), strict=True)
        )

    def _normalize(self, embedding: Tensor) -> Tensor:
        """Normalize over the batch; a batch of one tile by the batches before."""
        if len(embedding) > 1:
            normalized: Tensor = self.norm(embedding)
            return normalized
        return F.batch_norm(embedding, self.norm.running_mean, self.norm.running_var, eps=self.norm.eps)

    def project_tokens(self, last_map: Tensor) -> dict[str, Tensor]:
        """The last map [B, channels, h, w] with each teacher's channels, [B, C, h, w], by teacher."""
        if self.map_norm is None:
            return {}
        normalized = self.map_norm(last_map)
        return {_name(key): head(normalized) for key, head in self.tokens.items()}


def _projections(width: int, spec: HeadSpec) -> nn.ModuleDict:
    wide = {name: each.width for name, each in spec.teachers.items() if each.width is not None}
    make = nn.Linear if spec.projection == "linear" else _mlp
    return nn.ModuleDict({_key(name): make(width, out) for name, out in wide.items()})


def _mlp(width: int, out: int) -> nn.Module:
    """Two layers with a LayerNorm and a GELU between them, as AM-RADIO's heads (Ranzinger et al., arXiv 2312.06709)."""
    return nn.Sequential(nn.Linear(width, out), nn.LayerNorm(out), nn.GELU(), nn.Linear(out, out))


def _key(teacher: str) -> str:
    """Keys of an `nn.ModuleDict` must not be names of its methods, such as `values`; teachers may be."""
    return f"to_{teacher}"


def _name(key: str) -> str:
    return key.removeprefix("to_")
