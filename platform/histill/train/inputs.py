"""Read everything that a run takes from storage, in one place; the checks are elsewhere and do no I/O."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from histill.artifacts.encoder_weights import EncoderWeights, read_weights
from histill.artifacts.lineage import recall_licenses
from histill.artifacts.model_folder import ModelCard, TaughtBy, read_card, read_digest
from histill.artifacts.model_folder import resolve as resolve_model
from histill.config.common import Storage
from histill.config.runs import RunConfig, Sources
from histill.errors import InputError
from histill.teachers.cache import CacheHeader, read_header
from histill.teachers.teacher import Teacher, find_licensed, load_teacher
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import read_manifest

T = TypeVar("T")


@dataclass(frozen=True)
class Encoder:
    """The pretrained model that initializes a run's encoder, or all of its network."""

    card: ModelCard
    digest: str


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run; None for those that its configuration does not name."""

    manifest: Manifest
    teacher: Teacher | None = None  # on the CPU
    teacher_card: ModelCard | None = None  # if the teacher is a network with a card
    responses: CacheHeader | None = None
    encoder: Encoder | None = None
    start: Encoder | None = None  # the whole model that the run continues from
    weights: EncoderWeights | None = None
    embedding_caches: Mapping[str, CacheHeader] = field(default_factory=dict)  # by the teacher's name
    embedding_teachers: Mapping[str, Teacher] = field(default_factory=dict)  # live ones, on the CPU
    licensed: tuple[TaughtBy, ...] = ()  # whose licenses the model inherits, besides those of its encoder's card

    @property
    def teacher_layers(self) -> Mapping[str, int]:
        """Channels of the teacher's available feature maps, by layer: the cache's if there is one."""
        if self.responses is not None:
            return self.responses.layers
        return self.teacher.features.layers if self.teacher and self.teacher.features else {}

    def digests(self, config: RunConfig) -> dict[str, str]:
        """SHA-256 of each input by its `config` key, so that a run resumes only with the inputs it was started with."""
        digests = {"data.tiles": self.manifest.header.digest}
        if self.teacher is not None:
            digests["teacher.model"] = self.teacher.digest
        if self.responses is not None:
            digests["responses"] = self.responses.digest
        for name, header in self.embedding_caches.items():
            digests[f"embeddings.{name}"] = header.digest
        for name, teacher in self.embedding_teachers.items():
            digests[f"embeddings.{name}"] = teacher.digest
        if self.encoder is not None:
            digests["encoder"] = self.encoder.digest
        if self.start is not None:
            digests["continue_from"] = self.start.digest
        if self.weights is not None:
            digests[f"{config.sources.network_key}.weights"] = self.weights.digest
        return digests


def resolve(config: RunConfig, known: dict[Any, Any] | None = None) -> Inputs:
    """Read the inputs that `config` names. Raises InputError for a missing or invalid one.

    `known` caches what was read across calls, because the trials of a sweep share most of their inputs.
    """
    known, sources, storage = {} if known is None else known, config.sources, config.storage

    def once(key: str, named: Any, read: Callable[[], T]) -> T | None:
        if named is None:
            return None
        if (key, named) not in known:
            known[key, named] = read()
        found: T = known[key, named]
        return found

    tiles, teacher, responses, encoder = config.data.tiles, sources.teacher, sources.responses, sources.encoder
    weights, architecture = sources.network.weights, sources.network.encoder

    def read_model(uri: str | None) -> Encoder | None:  # before the tiles, as it tells at once whether it fits
        key = f"{sources.network_key}.encoder"
        read = partial(_read_encoder, str(uri), architecture, storage, key)
        return once("encoder", uri and (uri, architecture), read)

    pretrained, start = read_model(encoder), read_model(config.continue_from)
    manifest = once("tiles", tiles, lambda: read_manifest(tiles, storage))
    assert manifest is not None
    mpp = manifest.header.mpp
    model = teacher.value if teacher and teacher.kind.trained_on == "its card" else None
    caches = {
        name: once("responses", each.responses, partial(read_header, str(each.responses), storage))
        for name, each in sources.embeddings.items()
    }
    live = {
        name: once("teacher", each.teacher, partial(load_teacher, each.teacher, mpp, storage))
        for name, each in sources.embeddings.items()
        if each.teacher is not None
    }
    inputs = Inputs(
        manifest=manifest,
        teacher=once("teacher", teacher, lambda: load_teacher(teacher, mpp, storage)) if teacher else None,
        teacher_card=once("card", model, lambda: read_card(resolve_model(str(model), storage), storage)),
        responses=once("responses", responses, lambda: read_header(str(responses), storage)),
        encoder=pretrained,
        start=start,
        weights=once("weights", weights, lambda: read_weights(str(weights), storage)),
        embedding_caches={name: header for name, header in caches.items() if header is not None},
        embedding_teachers={name: each for name, each in live.items() if each is not None},
    )
    return replace(inputs, licensed=tuple(_list_licensed(sources, inputs, storage)))


def _list_licensed(sources: Sources, inputs: Inputs, storage: Storage) -> Iterator[TaughtBy]:
    """The licensed teachers and weights that a run learns from or starts with, besides those of its encoder's card."""
    if sources.teacher is not None and inputs.teacher is not None:
        cached = inputs.responses.taught_by if inputs.responses is not None else None
        yield from recall_licenses(find_licensed(sources.teacher, inputs.teacher, storage), cached or ())
    for name, header in inputs.embedding_caches.items():
        if header.taught_by is None:
            yield TaughtBy(name=f"embedding teacher {name} {header.teacher[:12]}, cached before licenses were recorded")
        else:
            yield from header.taught_by
    for name, teacher in inputs.embedding_teachers.items():
        config = sources.embeddings[name].teacher
        assert config is not None
        yield from find_licensed(config, teacher, storage)
    if sources.network.weights is not None:
        yield TaughtBy(name=f"encoder weights {sources.network.weights}", license=sources.network.weights_license)


def _read_encoder(uri: str, architecture: str, storage: Storage, key: str) -> Encoder:
    folder = resolve_model(uri, storage)
    card = read_card(folder, storage)
    if card.encoder != architecture:
        raise InputError(
            f"{uri} was trained with the encoder {card.encoder} and {key} is {architecture}; set {key}={card.encoder}.",
            code="weights-do-not-fit",
        )
    return Encoder(card, read_digest(folder, card, storage))
