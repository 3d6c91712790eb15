"""Training-only modules around a network, left out of the saved model: layer projections and deep-supervision heads."""

from typing import NamedTuple

from torch import Tensor, nn, ones

from histill.losses.layers import Layers, Pair
from histill.models.deep_supervision import answer_deep, deep_heads
from histill.models.embedding_heads import EmbeddingHeads, HeadSpec, Projected
from histill.models.encoders import embedding_width, pool
from histill.models.feature_maps import choose_maps, forward_with_features, layer_channels
from histill.models.segmenter import Segmenter
from histill.models.transfer import Model


class StudentOutput(NamedTuple):
    """The outputs of a student in training mode."""

    logits: Tensor  # [B, K] or [B, K, H, W]
    maps: dict[str, Tensor]  # by layer, [B, C, h, w]
    projected: dict[Pair, Tensor]  # by pair, with the teacher's number of channels
    mixture: Tensor | None  # [len(mixed)]
    deep: tuple[Tensor, ...] = ()  # logits of deep stages, [B, K, h, w]
    embeddings: tuple[Projected, ...] = ()  # the embedding, then its prefixes, where teachers of embeddings exist
    projected_tokens: dict[str, Tensor] = {}  # noqa: RUF012 - by teacher, [B, its C, h, w]


class ProjectedStudent(nn.Module):
    """Wraps a network with its training-only modules: layer projections and heads on deep stages.

    In training mode it returns `StudentOutput`, in evaluation mode only the network's logits. Only `model` is scored
    and saved. A projection is a 1x1 convolution, or the identity where the widths are equal.
    """

    model: Model
    heads: nn.ModuleList | None

    def __init__(
        self,
        model: Model,
        layers: Layers,
        *,
        deep_classes: int = 0,
        heads: HeadSpec = HeadSpec(),  # noqa: B008 - frozen
    ) -> None:
        """`deep_classes`: of a segmenter's deep-supervision heads, 0: none; `heads`: for teachers of embeddings."""
        super().__init__()
        self.model, self.layers = model, layers
        own = layer_channels(model)
        self.projections = nn.ModuleList(
            nn.Identity() if own[layer] == width else nn.Conv2d(own[layer], width, 1)
            for (layer, _), width in layers.pairs
        )
        self.mixture = nn.Parameter(ones(len(layers.mixed))) if layers.mixed else None
        self.heads = deep_heads(model, deep_classes) if deep_classes and isinstance(model, Segmenter) else None
        self.last = list(own)[-1]
        self.embedding_heads = EmbeddingHeads(embedding_width(model), own[self.last], heads) if heads.teachers else None

    def forward(self, tiles: Tensor) -> Tensor | StudentOutput:
        if not self.training:
            logits: Tensor = self.model(tiles)
            return logits
        pairs = [pair for pair, _ in self.layers.pairs]
        heads, dense = self.embedding_heads, isinstance(self.model, Segmenter)
        pooled = () if heads is None or not (dense or heads.tokens) else (self.last,)
        seen = tuple(dict.fromkeys((*self.layers.student, *(layer for layer, _ in pairs), *pooled)))
        deep: tuple[Tensor, ...] = ()
        if self.heads is None or not isinstance(self.model, Segmenter):
            logits, maps = forward_with_features(self.model, tiles, seen)
        else:
            features = self.model.features(tiles)
            logits, maps = self.model.logits(features), choose_maps(self.model, features, seen)
            deep = answer_deep(self.heads, features)
        projected = {pair: project(maps[pair[0]]) for pair, project in zip(pairs, self.projections, strict=True)}
        own = {layer: maps[layer] for layer in self.layers.student}
        output = StudentOutput(logits, own, projected, self.mixture, deep)
        if heads is None:
            return output
        last = maps.get(self.last)
        embeddings = heads(pool(last) if dense and last is not None else logits)
        tokens = {} if last is None else heads.project_tokens(last)
        return output._replace(embeddings=embeddings, projected_tokens=tokens)
