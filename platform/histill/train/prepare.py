"""Everything a training run must know before Ray starts; all that can be refused is refused here."""

from dataclasses import dataclass, field

from histill.artifacts.encoder_weights import read_weights
from histill.artifacts.model_folder import ModelCard, build, read_card, resolve
from histill.config.common import Storage
from histill.config.distill import DistillConfig
from histill.config.finetune import FinetuneConfig
from histill.config.runs import BOUNDARY, Network, PretrainConfig, RunConfig, TeacherConfig
from histill.distill.terms import layers_of
from histill.errors import InputError
from histill.models.encoders import load_encoder
from histill.models.layers import layer_channels
from histill.models.matching import Layers
from histill.models.students import STRIDE
from histill.outputs import OutputSpec
from histill.storage.control import probe
from histill.stream.cached_views import CachedViews
from histill.stream.read import Kept, Source
from histill.stream.views import Views, check_window
from histill.teachers.cache import check_views, matching_cache
from histill.teachers.network import NetworkTeacher
from histill.teachers.teacher import load_teacher
from histill.tiles.manifest import Manifest, read_manifest
from histill.train.checks import card_of, check_masks, check_resolutions, checked_manifest
from histill.train.inputs import with_inputs
from histill.train.labels import few_of, labels_to_learn, labels_to_see

# Kinds of runs.
PRETRAINING, TEACHING, FINETUNING = "pretrain_student", "train_teacher", "finetune_student"
DISTILLING = "distill_student"


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
    map_shape: tuple[int, int, int] | None = None  # of the teacher's cached feature maps, where they are compared
    cases: frozenset[str] | None = None  # of the training split; None: all
    class_weights: tuple[float, ...] | None = None
    labelled: frozenset[str] | None = None  # cases whose labels a distillation may see; None: all
    layers: Layers | None = None  # that a distillation compares
    judged_by_teacher: bool = False  # for want of labels or masks in the validation
    inputs: dict[str, str] = field(default_factory=dict)  # digests of what it is made from, by key


def prepare_pretraining(config: PretrainConfig) -> Prepared:
    """Check name, tiles, splits, teacher and responses of an RCKD run. Raises InputError."""
    manifest = checked_manifest(config, PRETRAINING, config.student)
    cached = None
    if config.responses is not None:
        responses = matching_cache(config.responses, manifest, config.teacher, config.storage)
        _check_dense(responses.outputs, config.responses)
        check_views(config.responses, responses, config.data.augment)
        cached = responses.at(config.responses)
        outputs, digest = responses.outputs, responses.teacher
    else:
        teacher = load_teacher(config.teacher, manifest.header.mpp, config.storage)
        _check_dense(teacher.outputs, f"teacher {config.teacher.model}")
        tile_px, augment = manifest.header.tile_px, config.data.augment
        check_window(augment, tile_px, Views(teacher.sees(tile_px)))  # it sees the window, too
        teacher.sees(augment.crop_px or tile_px)
        outputs, digest = teacher.outputs, teacher.digest
    card = card_of(config, config.student, manifest, outputs, teacher=digest)
    _check_weights(config.student, card, config.storage)
    views = Views(card.size_px, None if config.responses is not None else card.tile_px)
    prepared = Prepared(
        kind=PRETRAINING,
        config=config,
        card=card,
        source=_source(config, manifest, views, responses=cached),
        views=views,
        network=config.student,
        deep=config.loss.deep > 0,
        response_channels=outputs.packed_channels if config.responses is not None else 0,
    )
    return with_inputs(prepared)


def prepare_teacher(config: TeacherConfig) -> Prepared:
    """Check name, tiles, splits and masks or labels of a supervised run. Raises InputError."""
    classification, weights = config.target == "classification", None
    manifest = checked_manifest(config, TEACHING, config.network, dense=not classification)
    cases = few_of(config, manifest)
    if classification:
        outputs, weights = labels_to_learn(config, manifest, cases)
    else:
        check_masks(manifest, config.data.train, config.data.val)
        classes = config.classes or ("background", "nucleus")
        outputs = OutputSpec("segmentation", (*classes, BOUNDARY) if config.boundary_px else classes)
    card = card_of(config, config.network, manifest, outputs, cases=cases)
    _check_weights(config.network, card, config.storage)
    prepared = Prepared(
        kind=TEACHING,
        config=config,
        card=card,
        source=_source(config, manifest, Views(card.size_px), masks=not classification),
        views=Views(card.size_px),
        network=config.network,
        deep=config.deep > 0,
        cases=cases,
        class_weights=weights,
    )
    return with_inputs(prepared)


def prepare_distillation(config: DistillConfig) -> Prepared:
    """Check name, tiles, splits, teacher, resolutions, layers and responses of a distillation. Raises InputError."""
    storage = config.storage
    probe(config.runs, storage)  # first of all, as for every run
    teacher = load_teacher(config.teacher, read_manifest(config.data.tiles, storage).header.mpp, storage)
    outputs = teacher.outputs
    manifest = checked_manifest(config, DISTILLING, config.student, dense=outputs.dense)
    tile_px, cases = manifest.header.tile_px, few_of(config, manifest)
    card = card_of(config, config.student, manifest, outputs, teacher=teacher.digest, cases=cases)
    teacher_px = teacher.sees(tile_px)
    check_resolutions(card, teacher_px, config)
    cached, map_shape = None, None
    others = layer_channels(teacher.model) if isinstance(teacher, NetworkTeacher) else {}
    if config.responses is not None:
        responses = matching_cache(config.responses, manifest, config.teacher, storage)
        check_views(config.responses, responses, config.data.augment)
        cached, map_shape = responses.at(config.responses), responses.map_shape
        others = {layer: width for layer, width in others.items() if layer == responses.layer}
    shown_px = teacher_px if isinstance(teacher, NetworkTeacher) else tile_px  # others bring tiles to their size
    views = Views(card.size_px, shown_px if cached is None else None)
    check_window(config.data.augment, tile_px, views, STRIDE if outputs.dense else 1)
    if outputs.dense and cached is None:
        check_window(config.data.augment, tile_px, Views(shown_px), STRIDE)  # it sees the window, too
        teacher.sees(config.data.augment.crop_px or tile_px)
    _check_weights(config.student, card, storage)
    _check_encoder(config)
    own = layer_channels(build(card))
    layers = layers_of(config.loss, own, others)
    if outputs.multi_label and (config.loss.decoupled or config.data.balance == "response"):
        raise InputError(
            "loss.decoupled and data.balance=response are for classes that exclude each other, and the teacher's do "
            "not; leave them out."
        )
    if cached is not None and config.loss.attention:
        raise InputError("loss.attention needs a teacher that runs beside; set responses=null, or leave it out.")
    labelled, by_teacher = labels_to_see(config, manifest, outputs, cases)
    prepared = Prepared(
        kind=DISTILLING,
        config=config,
        card=card,
        source=_source(
            config,
            manifest,
            views,
            masks=outputs.dense and not by_teacher,
            responses=cached,
            maps=cached is not None and bool(layers.teacher),
        ),
        views=views,
        network=config.student,
        response_channels=outputs.packed_channels if cached is not None else 0,
        map_shape=map_shape if layers.teacher else None,
        cases=cases,
        labelled=labelled,
        layers=layers,
        judged_by_teacher=by_teacher,
    )
    return with_inputs(prepared)


def prepare_finetuning(config: FinetuneConfig) -> Prepared:
    """Check name, tiles, splits, labels or masks, and the pretrained encoder of a fine-tuning. Raises InputError."""
    classification, weights = config.target == "classification", None
    manifest = checked_manifest(config, FINETUNING, config.student, dense=not classification)
    cases = few_of(config, manifest)
    if classification:
        outputs, weights = labels_to_learn(config, manifest, cases)
    else:
        classes = config.classes or ("background", "tissue")
        if BOUNDARY in classes:
            raise InputError(
                f"classes {list(classes)} names {BOUNDARY!r}, which stands for what a teacher's boundary_px adds to "
                "its masks; choose another name."
            )
        check_masks(manifest, config.data.train, config.data.val)
        outputs = OutputSpec("segmentation", classes)
    card = card_of(config, config.student, manifest, outputs, cases=cases)
    _check_weights(config.student, card, config.storage)
    _check_encoder(config)
    prepared = Prepared(
        kind=FINETUNING,
        config=config,
        card=card,
        source=_source(config, manifest, Views(card.size_px), masks=not classification),
        views=Views(card.size_px),
        network=config.student,
        cases=cases,
        class_weights=weights,
    )
    return with_inputs(prepared)


def _source(
    config: RunConfig,
    manifest: Manifest,
    views: Views,
    *,
    masks: bool = False,
    responses: CachedViews | None = None,
    maps: bool = False,
) -> Source:
    """What the run's streams read."""
    kept = Kept(manifest.header.tile_px, max(views.sides)) if config.data.keep_decoded else None
    return Source(
        config.data.tiles,
        manifest.header.digest,
        config.storage,
        masks=masks,
        responses=responses,
        maps=maps,
        kept=kept,
    )


def _check_weights(network: Network, card: ModelCard, storage: Storage) -> None:
    """Raises InputError when the network's pretrained weights are missing or not those of its encoder."""
    if network.weights is not None:
        load_encoder(build(card), read_weights(network.weights, storage), network.weights)


def _check_dense(outputs: OutputSpec, what: str) -> None:
    """Raises InputError when `what` answers for whole tiles."""
    if not outputs.dense:
        raise InputError(
            f"{what} answers for whole tiles, and pretraining needs a response to every pixel; name a segmentation "
            "teacher, or use jobs/distill_student.py."
        )


def _check_encoder(config: FinetuneConfig | DistillConfig) -> None:
    """Raises InputError when the pretrained student is of another encoder."""
    if config.encoder is None:
        return
    pretrained = read_card(resolve(config.encoder, config.storage), config.storage)
    if pretrained.encoder != config.student.encoder:
        raise InputError(
            f"{config.encoder} was pretrained with the encoder {pretrained.encoder} and student.encoder is "
            f"{config.student.encoder}; set student.encoder={pretrained.encoder}."
        )
