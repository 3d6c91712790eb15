"""Checks shared by all kinds of runs. They work on inputs already read: nothing here reads or writes."""

from typing import Protocol

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from histill.artifacts.lineage import inherit
from histill.artifacts.model_folder import SAME_MPP, ModelCard, TaughtOn, build
from histill.config.runs import Data, Network, RunConfig
from histill.errors import InputError
from histill.losses.loss import Loss
from histill.models.classifiers import check_side
from histill.models.segmenter import STRIDE, Segmenter, check_encoder
from histill.models.transfer import Model, load_encoder
from histill.outputs import OutputSpec
from histill.storage.uris import absolute
from histill.stream.cached_views import CachedViews
from histill.stream.index import check_balance
from histill.stream.read import DecodedCacheSpec, TileSource
from histill.stream.views import Views, check_window
from histill.tiles.manifest import Manifest, case_digests
from histill.tiles.subsample import balance_weights, subsample_cases
from histill.train.inputs import Inputs
from histill.version import __version__

Rgb = tuple[float, float, float]


class Subsampled(Protocol):
    """The configuration of a run that can train on a fraction of the training cases."""

    @property
    def data(self) -> Data: ...
    @property
    def fraction(self) -> float: ...
    @property
    def fraction_seed(self) -> int: ...


class Classifying(Protocol):
    """The configuration of a run that can learn tile labels."""

    @property
    def data(self) -> Data: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...
    @property
    def multi_label(self) -> bool: ...
    @property
    def loss(self) -> Loss: ...


def check_data(
    config: RunConfig, network: Network, manifest: Manifest, *, dense: bool, by_response: bool = False
) -> None:
    """Raise InputError unless encoder, input sizes, splits and balance are valid.

    `dense`: for a U-Net. `by_response`: whether there are cached responses to balance tiles by.
    """
    check_encoder(network.encoder)
    check_window(
        config.data.augment, manifest.header.tile_px, Views(size_of(network, manifest, dense)), STRIDE if dense else 1
    )
    for split in (config.data.train, config.data.val):
        manifest.select(split)
    if config.data.balance == "response":
        if not by_response:
            raise InputError(
                "data.balance is 'response', which needs cached responses to whole tiles; set responses, or balance by "
                "label, slide or case.",
                code="responses-needed",
            )
    elif config.data.balance is not None:
        check_balance(manifest, config.data.train, config.data.balance)


def size_of(network: Network, manifest: Manifest, dense: bool) -> int:
    """The side, in pixels, at which `network` sees a whole tile.

    Raises InputError when it exceeds the tile's, is not a whole number at `network.mpp` or, for a U-Net (`dense`), is
    not a multiple of 32.
    """
    header = manifest.header
    size = network.size_px or header.tile_px
    if network.mpp is not None:
        exact = header.tile_px * header.mpp / network.mpp
        size = round(exact)
        if abs(exact - size) > 0.01 * exact:
            raise InputError(
                f"at mpp {network.mpp:g} a tile of {manifest.uri} ({header.tile_px} px at {header.mpp:g} um/px) has "
                f"{exact:.2f} px, no whole number; set size_px instead.",
                code="size-does-not-fit",
            )
    if size > header.tile_px:
        raise InputError(
            f"the network would see {size} px and the tiles of {manifest.uri} have {header.tile_px} px at "
            f"{header.mpp:g} um/px; choose at most {header.tile_px} px, or an mpp of at least {header.mpp:g}.",
            code="resolution-too-fine",
        )
    if dense and size % STRIDE:
        raise InputError(
            f"tiles of {size} px do not fit the network's stride of 32; set size_px to a multiple of 32.",
            code="size-does-not-fit",
        )
    return size


def make_card(
    config: RunConfig,
    inputs: Inputs,
    outputs: OutputSpec,
    *,
    cases: frozenset[str] | None = None,
) -> ModelCard:
    """The card of the model that a run will train; `cases` are the training cases that it sees, None: all.

    It includes the lineage of the encoder, or of the model that the run continues from, and of the teacher.
    """
    sources, manifest, train, val = config.sources, inputs.manifest, config.data.train, config.data.val
    network = sources.network
    begun = inputs.encoder or inputs.start
    mean, std = (begun.card.mean, begun.card.std) if begun else _normalization(network)
    card = ModelCard(
        kind=outputs.kind,
        multi_label=outputs.multi_label,
        encoder=network.encoder,
        decoder_channels=network.decoder_channels if outputs.dense else (),
        classes=outputs.classes,
        width=outputs.width,
        mean=mean,
        std=std,
        tile_px=manifest.header.tile_px,
        tile_mpp=manifest.header.mpp,
        size_px=size_of(network, manifest, outputs.dense),
        tiles_digest=manifest.header.digest,
        train_cases=case_digests(manifest, train, cases),
        teacher_digest=inputs.teacher.digest if inputs.teacher else None,
        teacher=sources.teacher.label if sources.teacher else None,
        histill=__version__,
        val_cases=case_digests(manifest, val),
        taught_on=(TaughtOn(digest=manifest.header.digest, uri=absolute(config.data.tiles)),),
        taught_by=inputs.licensed,
        shapes=inputs.start.card.shapes if inputs.start else {},
        icc=manifest.header.icc,
    )
    ancestors = [begun.card] if begun else []
    ancestors += [inputs.teacher_card] if inputs.teacher_card else []
    teacher = sources.teacher
    unknown = [teacher.label] if teacher and teacher.kind.trained_on == "unknown" else []
    unknown += [f"embedding teacher {name} {each.teacher[:12]}" for name, each in inputs.embedding_caches.items()]
    unknown += [f"embedding teacher {name} {each.digest[:12]}" for name, each in inputs.embedding_teachers.items()]
    unknown += [f"encoder weights {network.weights}"] if network.weights is not None else []
    return inherit(card, *ancestors, unknown=tuple(unknown))


def check_network(card: ModelCard, config: RunConfig, inputs: Inputs) -> Model:
    """Check that the pretrained weights fit the model of `card`, and return that model.

    Raises InputError when the network cannot take tiles of its size, published weights are of another encoder, or the
    model that the run continues from is another one.
    """
    if inputs.start is not None:
        _check_same_model(inputs.start.card, card, str(config.continue_from))
    model, sources = build(card), config.sources
    if not isinstance(model, Segmenter):
        check_side(model, card.size_px)
    if inputs.weights is not None:
        load_encoder(model, inputs.weights.tensors, str(sources.network.weights))
    return model


def _check_same_model(start: ModelCard, card: ModelCard, uri: str) -> None:
    """Raise InputError when `card` is of a model that cannot hold the weights of `start`, the model at `uri`."""
    for name in ("kind", "multi_label", "classes", "decoder_channels"):
        before, now = getattr(start, name), getattr(card, name)
        if before != now:
            raise InputError(
                f"continue_from={uri} is a model whose {name} is {_show(before)}, and this run would train one with "
                f"{_show(now)}; give this run the keys of that one, or start from its encoder alone (encoder={uri}).",
                code="weights-do-not-fit",
            )


def doubt_resolution(start: ModelCard, card: ModelCard, uri: str) -> str | None:
    """What is odd about continuing the model at `uri` if the network would see another resolution than before."""
    if abs(start.mpp / card.mpp - 1) <= SAME_MPP:
        return None
    return (
        f"the model of continue_from={uri} has seen tiles at {start.mpp:.3g} um/px, and this run shows them at "
        f"{card.mpp:.3g}; nuclei have another size there, so set the size_px that gives the same, unless that is meant."
    )


def _show(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def make_source(
    config: RunConfig,
    manifest: Manifest,
    views: Views,
    *,
    masks: bool = False,
    responses: CachedViews | None = None,
    maps: bool = False,
    embeddings: tuple[tuple[str, CachedViews], ...] = (),
) -> TileSource:
    """The tile source that the run's streams read."""
    kept = DecodedCacheSpec(manifest.header.tile_px, max(views.sides)) if config.data.cache_decoded else None
    tiles, digest = config.data.tiles, manifest.header.digest
    return TileSource(
        tiles, digest, config.storage, masks=masks, responses=responses, maps=maps, embeddings=embeddings, kept=kept
    )


def select_cases(config: Subsampled, manifest: Manifest) -> frozenset[str] | None:
    """The training cases that `config.fraction` selects; None for all."""
    if config.fraction == 1:
        return None
    return subsample_cases(manifest, config.data.train, config.fraction, config.fraction_seed)


def resolve_classes(
    config: Classifying, manifest: Manifest, cases: frozenset[str] | None
) -> tuple[OutputSpec, tuple[float, ...] | None]:
    """The outputs of a classifier, and its class weights if the loss uses them.

    Raises InputError for a tile without a label.
    """
    classes = config.classes or manifest.label_names(multi_label=config.multi_label)
    if len(classes) < 2:
        raise InputError(
            f"the tiles of {manifest.uri} have {len(classes)} labels ({', '.join(classes) or 'none'}) and a "
            "classifier needs two; ingest them with a label column.",
            code="label-missing",
        )
    outputs = OutputSpec("classification", classes, config.multi_label)
    manifest.labels_of(outputs, manifest.select(config.data.val))
    rows = manifest.select(config.data.train, cases)
    labels = manifest.labels_of(outputs, rows)
    return outputs, balance_weights(labels.count(rows, len(classes))) if config.loss.weighs_classes else None


def check_masks(manifest: Manifest, *splits: str) -> None:
    """Raise InputError when a tile of one of `splits` has no mask."""
    for split in splits:
        without = manifest.without_mask(manifest.select(split))
        if len(without):
            name = manifest.tile(int(without[0]))["tile_id"]
            raise InputError(
                f"{len(without)} tiles of split {split!r} in {manifest.uri} have no mask (first: {name}); "
                "masks are learned from, so ingest them with a mask column or name another split.",
                code="mask-missing",
            )


def _normalization(network: Network) -> tuple[Rgb, Rgb]:
    """Mean and standard deviation of RGB in 0..1: those of the pretrained weights, else ImageNet's."""
    stated = timm.get_pretrained_cfg(network.encoder) if network.weights is not None else None
    return (stated.mean, stated.std) if stated is not None else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
