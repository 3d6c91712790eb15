"""Everything a training run must know before Ray starts; all that can be refused is refused here."""

from dataclasses import dataclass
from functools import partial

from torch import nn

from histill.artifacts.encoder_weights import read_weights
from histill.artifacts.model_folder import ModelCard, build, load, read_card, resolve
from histill.config.common import Storage
from histill.config.finetune import FinetuneConfig
from histill.config.runs import BOUNDARY, Network, PretrainConfig, RunConfig, TeacherConfig
from histill.distill.classify import Classify
from histill.distill.masks import tile_name
from histill.distill.rckd import Rckd
from histill.distill.supervised import Supervised
from histill.distill.task import Task
from histill.errors import InputError
from histill.models.deep import DeepAnswers
from histill.models.encoders import carry_encoder, freeze_encoder, load_encoder
from histill.models.students import Segmenter
from histill.stream.read import Source
from histill.stream.views import Views, check_window
from histill.teachers.cache import check_views, matching_cache
from histill.teachers.teacher import load_teacher
from histill.tiles.manifest import read_manifest
from histill.tiles.subsets import balanced_weights, few_cases
from histill.train.checks import card_of, check_masks, checked_manifest

PRETRAINING, TEACHING, FINETUNING = "pretrain_student", "train_teacher", "finetune_student"  # kinds of runs


@dataclass(frozen=True)
class Prepared:
    """A checked run. Small: it is sent to every worker, which reads the manifest itself."""

    kind: str
    config: RunConfig
    card: ModelCard
    source: Source
    views: Views
    network: Network
    deep: bool = False  # whether stages of its encoder answer by themselves, too
    response_channels: int = 0
    cases: frozenset[str] | None = None  # of the training split; None: all
    class_weights: tuple[float, ...] | None = None


def prepare_pretraining(config: PretrainConfig) -> Prepared:
    """Check name, tiles, splits, teacher and responses of an RCKD run. Raises InputError."""
    manifest = checked_manifest(config, PRETRAINING, config.student)
    cached = None
    if config.responses is not None:
        responses = matching_cache(config.responses, manifest, config.teacher, config.storage)
        check_views(config.responses, responses, config.data.augment)
        cached = responses.at(config.responses)
        classes, digest = responses.classes, responses.teacher
    else:
        teacher = load_teacher(config.teacher, manifest.header.mpp, config.storage)
        tile_px, augment = manifest.header.tile_px, config.data.augment
        check_window(augment, tile_px, Views(teacher.sees(tile_px)))  # it sees the window, too
        teacher.sees(augment.crop_px or tile_px)
        classes, digest = teacher.classes, teacher.digest
    card = card_of(config, config.student, manifest, classes, teacher=digest)
    _check_weights(config.student, card, config.storage)
    return Prepared(
        kind=PRETRAINING,
        config=config,
        card=card,
        source=Source(config.data.tiles, manifest.header.digest, config.storage, responses=cached),
        views=Views(card.size_px, None if config.responses is not None else card.tile_px),
        network=config.student,
        deep=config.loss.deep > 0,
        response_channels=len(classes) - 1 if config.responses is not None else 0,
    )


def prepare_teacher(config: TeacherConfig) -> Prepared:
    """Check name, tiles, splits and masks of a supervised run. Raises InputError."""
    manifest = checked_manifest(config, TEACHING, config.network)
    check_masks(manifest, config.data.train, config.data.val)
    classes = (*config.classes, BOUNDARY) if config.boundary_px else config.classes
    card = card_of(config, config.network, manifest, classes)
    _check_weights(config.network, card, config.storage)
    return Prepared(
        kind=TEACHING,
        config=config,
        card=card,
        source=Source(config.data.tiles, manifest.header.digest, config.storage, masks=True),
        views=Views(card.size_px),
        network=config.network,
        deep=config.deep > 0,
    )


def prepare_finetuning(config: FinetuneConfig) -> Prepared:
    """Check name, tiles, splits, labels or masks, and the pretrained encoder of a fine-tuning. Raises InputError."""
    manifest = checked_manifest(config, FINETUNING, config.student)
    train, val = config.data.train, config.data.val
    cases = few_cases(manifest, train, config.fraction, config.fraction_seed) if config.fraction < 1 else None
    classification, weights = config.target == "classification", None
    if classification:
        classes = config.classes or manifest.header.labels
        if len(classes) < 2:
            raise InputError(
                f"the tiles of {manifest.uri} have {len(classes)} labels ({', '.join(classes) or 'none'}) and a "
                "classifier needs two; ingest them with a label column."
            )
        manifest.labels_among(classes, manifest.rows_of(val))
        rows = manifest.rows_of(train, cases)
        labels = manifest.labels_among(classes, rows)
        weights = balanced_weights(labels[rows], len(classes)) if config.class_weights else None
    else:
        classes = config.classes or ("background", "tissue")
        if BOUNDARY in classes:
            raise InputError(
                f"classes {list(classes)} names {BOUNDARY!r}, which stands for what a teacher's boundary_px adds to "
                "its masks; choose another name."
            )
        check_masks(manifest, train, val)
    if config.encoder is not None:
        pretrained = read_card(resolve(config.encoder, config.storage), config.storage)
        if pretrained.encoder != config.student.encoder:
            raise InputError(
                f"{config.encoder} was pretrained with the encoder {pretrained.encoder} and student.encoder is "
                f"{config.student.encoder}; set student.encoder={pretrained.encoder}."
            )
    card = card_of(config, config.student, manifest, classes, classification=classification, cases=cases)
    _check_weights(config.student, card, config.storage)
    return Prepared(
        kind=FINETUNING,
        config=config,
        card=card,
        source=Source(config.data.tiles, manifest.header.digest, config.storage, masks=not classification),
        views=Views(card.size_px),
        network=config.student,
        cases=cases,
        class_weights=weights,
    )


def make_model(prepared: Prepared) -> nn.Module:
    """What learns in the run, before its first step, with the pretrained encoder if there is one."""
    config, model = prepared.config, build(prepared.card)
    if prepared.network.weights is not None:
        load_encoder(model, read_weights(prepared.network.weights, config.storage), prepared.network.weights)
    if isinstance(config, FinetuneConfig) and config.encoder is not None:
        pretrained, _, _ = load(resolve(config.encoder, config.storage), config.storage)
        carry_encoder(pretrained, model)
    if isinstance(config, FinetuneConfig) and config.frozen:
        freeze_encoder(model)
    if prepared.deep and isinstance(model, Segmenter):
        return DeepAnswers(model, len(prepared.card.classes))
    return model


def _check_weights(network: Network, card: ModelCard, storage: Storage) -> None:
    """Raises InputError when the network's pretrained weights are missing or not those of its encoder."""
    if network.weights is not None:
        load_encoder(build(card), read_weights(network.weights, storage), network.weights)


def make_task(prepared: Prepared) -> Task:
    """The run's task, made in each worker, since a live network teacher is too large to send around."""
    config, card = prepared.config, prepared.card
    if isinstance(config, PretrainConfig):
        teacher = None
        if config.responses is None:
            teacher = load_teacher(config.teacher, card.tile_mpp, config.storage, gpu=config.workers.gpus > 0)
        return Rckd(card.classes, config.loss, teacher)
    if isinstance(config, FinetuneConfig) and config.target == "classification":
        return Classify(card.classes, prepared.class_weights)
    if isinstance(config, TeacherConfig | FinetuneConfig):
        boundary_px, deep = (config.boundary_px, config.deep) if isinstance(config, TeacherConfig) else (0, 0.0)
        return Supervised(card.classes, config.dice, boundary_px, deep, partial(_tile_name, prepared.source))
    raise TypeError(f"no task for a {type(config).__name__}")


def _tile_name(source: Source, row: int) -> str:
    """As in the manifest, which is read for it: a task is sent around without."""
    return tile_name(read_manifest(source.tiles, source.storage), row)
