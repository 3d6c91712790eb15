"""Check the teachers of embeddings that a run learns from, and tell its workers where the embeddings come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from histill.config.augment import Augment
from histill.config.pretrain_student import PretrainConfig
from histill.errors import InputError
from histill.models.embedding_heads import EmbeddingShape, HeadSpec
from histill.stream.cached_views import CachedViews
from histill.tasks.embeddings import EmbeddingSource
from histill.teachers.cache import CacheHeader, check_tiles, check_views
from histill.teachers.teacher import TOKENS, Teacher
from histill.train.inputs import Inputs


@dataclass(frozen=True)
class EmbeddingPlan:
    """What is learned from each teacher of embeddings, by name. Small: it is sent to every worker."""

    heads: HeadSpec = field(default_factory=HeadSpec)
    cached: tuple[tuple[str, CachedViews], ...] = ()
    sources: Mapping[str, EmbeddingSource] = field(default_factory=dict)  # of live ones without the teacher
    live: tuple[str, ...] = ()


def plan_embeddings(config: PretrainConfig, inputs: Inputs) -> EmbeddingPlan:
    """What the run's workers need to know.

    Raises InputError for a cache of other tiles or of predictions instead of embeddings, caches of differing views, a
    teacher without tokens, and a live teacher that cannot see the tiles.
    """
    needs, augment = config.loss.needs, config.data.augment
    shapes, sources, cached = {}, {}, []
    for name, teacher in config.embeddings.items():
        header = inputs.embedding_caches.get(name)
        if header is None:
            width, channels = _check_live(name, inputs.embedding_teachers[name], inputs, augment, "tokens" in needs)
            sources[name] = EmbeddingSource(teacher.weight, width)
        else:
            uri = str(teacher.responses)
            check_tiles(uri, header, inputs.manifest)
            check_views(uri, header, augment)
            width, channels = _check_cached(uri, header, "tokens" in needs)
            scaled = teacher.normalize == "scale"
            sources[name] = EmbeddingSource(
                teacher.weight,
                width,
                mean=header.mean if scaled else None,
                scale=header.scale if scaled and header.scale is not None else 1.0,
            )
            views = header.at(uri)
            cached.append((name, views if "tokens" in needs else replace(views, map_shape=None)))
        shapes[name] = EmbeddingShape(width if "projections" in needs else None, channels)
    _check_same_views(config, inputs)
    heads = HeadSpec(shapes, config.projection, config.prefixes)
    return EmbeddingPlan(heads, tuple(cached), sources, tuple(inputs.embedding_teachers))


def _check_live(name: str, teacher: Teacher, inputs: Inputs, augment: Augment, tokens: bool) -> tuple[int, int | None]:
    """The width of its embeddings and, if `tokens` are compared, the channels of its token maps."""
    width, tile_px = teacher.outputs.width, inputs.manifest.header.tile_px
    if width is None:
        raise InputError(
            f"embeddings.{name}.teacher predicts classes, not embeddings; name a teacher of embeddings, or set "
            "teacher.",
            code="teacher-wrong-kind",
        )
    teacher.sees(augment.crop_px or tile_px)
    layers = teacher.features.layers if teacher.features is not None else {}
    if tokens and TOKENS not in layers:
        raise InputError(
            f"embeddings.{name}.teacher has no patch tokens, which loss.tokens compares; leave that out.",
            code="maps-missing",
        )
    return width, layers[TOKENS] if tokens else None


def _check_cached(uri: str, header: CacheHeader, tokens: bool) -> tuple[int, int | None]:
    """As `_check_live`, of the cache at `uri`."""
    if header.width is None:
        raise InputError(
            f"responses {uri} are predictions of classes, not embeddings; cache those of a teacher of embeddings.",
            code="teacher-wrong-kind",
        )
    if tokens and TOKENS not in header.layers:
        raise InputError(
            f"responses {uri} have no patch tokens, which loss.tokens compares; cache them with layer={TOKENS}, or "
            "leave the term out.",
            code="maps-missing",
        )
    return header.width, header.layers[TOKENS] if tokens else None


def _check_same_views(config: PretrainConfig, inputs: Inputs) -> None:
    """An epoch shows a tile once, so all cached responses must be to the same views of it."""
    headers = {f"embeddings.{name}": header for name, header in inputs.embedding_caches.items()}
    if inputs.responses is not None:
        headers["responses"] = inputs.responses
    views = {_views_of(header): name for name, header in headers.items()}
    if len(views) > 1:
        first, second, *_ = views.values()
        raise InputError(
            f"{first} and {second} are of differing views of the tiles; cache both with the same views, seed and "
            "augment.",
            code="responses-of-other-views",
        )
    if any(header.views > 1 for header in headers.values()) and inputs.embedding_teachers:
        raise InputError(
            "cached views cannot be shown to a live teacher as well; cache all teachers of embeddings.",
            code="responses-needed",
        )


def _views_of(header: CacheHeader) -> tuple[int, int, bool, int | None]:
    if header.views == 1:  # the upright tile, whatever the seed
        return 1, 0, False, None
    return header.views, header.seed, header.flips, header.crop_px
