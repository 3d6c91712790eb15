"""Check the teachers of embeddings that a run learns from, and tell its workers where the embeddings come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from histill.config.augment import Augment
from histill.config.embeddings import EmbeddingTeacher
from histill.errors import InputError
from histill.models.embedding_heads import EmbeddingShape
from histill.stream.cached_views import CachedViews
from histill.tasks.embeddings import EmbeddingSource
from histill.teachers.cache import CacheHeader, check_tiles, check_views
from histill.teachers.teacher import Teacher
from histill.train.inputs import Inputs

TOKENS = "tokens"
"""The layer of a teacher of embeddings whose feature map holds its patch tokens."""


@dataclass(frozen=True)
class EmbeddingPlan:
    """What is learned from each teacher of embeddings, by name. Small: it is sent to every worker."""

    shapes: Mapping[str, EmbeddingShape] = field(default_factory=dict)
    cached: tuple[tuple[str, CachedViews], ...] = ()
    sources: Mapping[str, EmbeddingSource] = field(default_factory=dict)  # of live ones without the teacher
    live: tuple[str, ...] = ()


def plan_embeddings(
    teachers: Mapping[str, EmbeddingTeacher], inputs: Inputs, augment: Augment, *, tokens: bool
) -> EmbeddingPlan:
    """What the run's workers need to know; `tokens`: whether a term compares token maps.

    Raises InputError for a cache of other tiles or of predictions instead of embeddings, caches of differing views, a
    teacher without tokens, and a live teacher that cannot see the tiles.
    """
    shapes, sources, cached = {}, {}, []
    for name, teacher in teachers.items():
        header = inputs.embedding_caches.get(name)
        if header is None:
            shapes[name] = _check_live(name, inputs.embedding_teachers[name], inputs, augment, tokens)
            sources[name] = EmbeddingSource(teacher.weight, shapes[name].width)
            continue
        uri = str(teacher.responses)
        check_tiles(uri, header, inputs.manifest)
        check_views(uri, header, augment)
        shapes[name] = _check_cached(uri, header, tokens)
        scaled = teacher.normalize == "scale"
        sources[name] = EmbeddingSource(
            teacher.weight,
            shapes[name].width,
            mean=header.mean if scaled else None,
            scale=header.scale if scaled and header.scale is not None else 1.0,
        )
        cached.append((name, _without_tokens(header.at(uri)) if not tokens else header.at(uri)))
    _check_same_views(teachers, cached)
    return EmbeddingPlan(shapes, tuple(cached), sources, tuple(inputs.embedding_teachers))


def _check_live(name: str, teacher: Teacher, inputs: Inputs, augment: Augment, tokens: bool) -> EmbeddingShape:
    width, tile_px = teacher.outputs.width, inputs.manifest.header.tile_px
    if width is None:
        raise InputError(
            f"embeddings.{name}.teacher predicts classes, not embeddings; name a teacher of embeddings, or set teacher."
        )
    teacher.sees(augment.crop_px or tile_px)
    layers = teacher.features.layers if teacher.features is not None else {}
    if tokens and TOKENS not in layers:
        raise InputError(f"embeddings.{name}.teacher has no patch tokens, which loss.tokens compares; leave that out.")
    return EmbeddingShape(width, layers[TOKENS] if tokens else None)


def _check_cached(uri: str, header: CacheHeader, tokens: bool) -> EmbeddingShape:
    if header.width is None:
        raise InputError(
            f"responses {uri} are predictions of classes, not embeddings; cache those of a teacher of embeddings."
        )
    if tokens and header.map_shape is None:
        raise InputError(
            f"responses {uri} have no patch tokens, which loss.tokens compares; cache them with layer={TOKENS}, or "
            "leave the term out."
        )
    return EmbeddingShape(header.width, header.map_shape[0] if tokens and header.map_shape else None)


def _without_tokens(cached: CachedViews) -> CachedViews:
    return CachedViews(cached.uri, cached.outputs, cached.views, cached.seed, cached.augment)


def _check_same_views(teachers: Mapping[str, EmbeddingTeacher], cached: list[tuple[str, CachedViews]]) -> None:
    views = {(each.views, each.seed, each.augment): name for name, each in cached}
    if len(views) > 1:
        first, second, *_ = views.values()
        raise InputError(
            f"embeddings.{first} and embeddings.{second} are of differing views of the tiles; cache both with the same "
            "views, seed and augment."
        )
    if any(each.views > 1 for _, each in cached) and any(each.teacher is not None for each in teachers.values()):
        raise InputError("cached views cannot be shown to a live teacher as well; cache all teachers of embeddings.")
