"""Everything a training run must know before Ray starts; all that can be refused is refused here."""

import hashlib
from dataclasses import dataclass

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import histill
from histill.artifacts.model_folder import ModelCard
from histill.config.runs import Network, PretrainConfig, RunConfig, TeacherConfig
from histill.distill.rckd import Rckd
from histill.distill.supervised import Supervised
from histill.distill.task import Task
from histill.errors import InputError
from histill.models.students import check_encoder
from histill.storage.control import probe
from histill.stream.read import Source
from histill.teachers.cache import matching_cache, on_device
from histill.teachers.teacher import load_teacher
from histill.tiles.manifest import Manifest, read_manifest
from histill.train.run_folder import open_record

PRETRAINING, TEACHING = "pretrain_student", "train_teacher"  # kinds of runs


@dataclass(frozen=True)
class Prepared:
    """A checked run. Small: it is sent to every worker, which reads the manifest itself."""

    kind: str
    config: RunConfig
    card: ModelCard
    source: Source
    response_channels: int


def prepare_pretraining(config: PretrainConfig) -> Prepared:
    """Check name, tiles, splits, teacher and responses of an RCKD run. Raises InputError."""
    manifest = _checked_manifest(config, PRETRAINING, config.student)
    if config.responses is not None:
        responses = matching_cache(config.responses, manifest, config.teacher, config.storage)
        classes, digest = responses.classes, responses.teacher
    else:
        teacher = load_teacher(config.teacher, manifest.header.mpp, config.storage)
        classes, digest = teacher.classes, teacher.digest
    return Prepared(
        kind=PRETRAINING,
        config=config,
        card=_card(config, config.student, manifest, classes, digest),
        source=Source(config.data.tiles, config.storage, responses=config.responses),
        response_channels=len(classes) - 1 if config.responses is not None else 0,
    )


def prepare_teacher(config: TeacherConfig) -> Prepared:
    """Check name, tiles, splits and masks of a supervised run. Raises InputError."""
    manifest = _checked_manifest(config, TEACHING, config.network)
    for split in (config.data.train, config.data.val):
        without = [tile for tile in manifest.rows_of(split) if not manifest.table["has_mask"][int(tile)].as_py()]
        if without:
            name = manifest.table["tile_id"][int(without[0])].as_py()
            raise InputError(
                f"{len(without)} tiles of split {split!r} in {manifest.uri} have no mask (first: {name}); a teacher "
                "learns from masks, so ingest them with a mask column or name another split."
            )
    return Prepared(
        kind=TEACHING,
        config=config,
        card=_card(config, config.network, manifest, config.classes, None),
        source=Source(config.data.tiles, config.storage, masks=True),
        response_channels=0,
    )


def make_task(prepared: Prepared) -> Task:
    """The run's task, made in each worker, since a live network teacher is too large to send around."""
    config, card = prepared.config, prepared.card
    if isinstance(config, PretrainConfig):
        teacher = None
        if config.responses is None:
            teacher = on_device(load_teacher(config.teacher, card.tile_mpp, config.storage), config.workers.gpus > 0)
        return Rckd(card.classes, card.size_px, config.loss, teacher)
    if isinstance(config, TeacherConfig):
        return Supervised(card.classes, card.size_px, config.dice)
    raise TypeError(f"no task for a {type(config).__name__}")


def _checked_manifest(config: RunConfig, kind: str, network: Network) -> Manifest:
    probe(config.runs, config.storage)  # first of all: it tells what is wrong with credentials and buckets
    open_record(config, kind)
    manifest = read_manifest(config.data.tiles, config.storage)
    check_encoder(network.encoder)
    size_px, tile_px = network.size_px or manifest.header.tile_px, manifest.header.tile_px
    if size_px > tile_px:
        raise InputError(
            f"size_px is {size_px} and the tiles of {manifest.uri} have {tile_px} px; choose at most {tile_px}."
        )
    if size_px % 32:
        raise InputError(
            f"tiles of {tile_px} px do not fit the network's stride of 32; set size_px to a multiple of 32."
        )
    for split in (config.data.train, config.data.val):
        manifest.rows_of(split)
    return manifest


def _card(
    config: RunConfig, network: Network, manifest: Manifest, classes: tuple[str, ...], teacher_digest: str | None
) -> ModelCard:
    return ModelCard(
        encoder=network.encoder,
        decoder_channels=network.decoder_channels,
        classes=classes,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        tile_px=manifest.header.tile_px,
        tile_mpp=manifest.header.mpp,
        size_px=network.size_px or manifest.header.tile_px,
        tiles_digest=manifest.header.digest,
        train_cases=cases_digest(manifest, config.data.train),
        teacher_digest=teacher_digest,
        histill=histill.__version__,
    )


def cases_digest(manifest: Manifest, split: str) -> str:
    """SHA-256 over the sorted case names of a split."""
    cases = manifest.table.filter(manifest.table["split"].to_numpy(zero_copy_only=False) == split)["case"]
    return hashlib.sha256("\n".join(sorted(cases.unique().to_pylist())).encode()).hexdigest()
