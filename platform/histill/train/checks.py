"""What every training run is checked for before Ray starts, and the card of the model that it will make."""

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import histill
from histill.artifacts.lineage import with_lineage
from histill.artifacts.model_folder import ModelCard, TaughtOn, build
from histill.config.distill import DistillConfig
from histill.config.runs import Network, RunConfig
from histill.errors import InputError
from histill.models.classifiers import Classifier, check_side
from histill.models.students import STRIDE, check_encoder
from histill.outputs import OutputSpec
from histill.storage.control import probe
from histill.storage.uris import absolute
from histill.stream.places import balance_groups
from histill.stream.views import Views, check_window
from histill.tiles.manifest import Manifest, case_digests, read_manifest
from histill.train.run_folder import open_record

Rgb = tuple[float, float, float]


def checked_manifest(config: RunConfig, kind: str, network: Network, *, dense: bool = True) -> Manifest:
    """The run's tile set, once its name, folder, splits and sizes are in order; `dense`: for a U-Net."""
    probe(config.runs, config.storage)  # first of all: it tells what is wrong with credentials and buckets
    open_record(config, kind)
    manifest = read_manifest(config.data.tiles, config.storage)
    check_encoder(network.encoder)
    check_window(
        config.data.augment, manifest.header.tile_px, Views(size_of(network, manifest, dense)), STRIDE if dense else 1
    )
    for split in (config.data.train, config.data.val):
        manifest.rows_of(split)
    if config.data.balance == "response":
        if dense or not isinstance(config, DistillConfig) or config.responses is None:
            raise InputError(
                "data.balance is 'response', which needs cached responses to whole tiles; set responses, or balance by "
                "label, slide or case."
            )
    elif config.data.balance is not None:
        balance_groups(manifest, manifest.rows_of(config.data.train), config.data.balance)
    return manifest


def size_of(network: Network, manifest: Manifest, dense: bool) -> int:
    """The side, in pixels, at which `network` sees a whole tile.

    Raises InputError when it is above the tile's, no whole number of pixels at `network.mpp` or, for a U-Net (`dense`),
    no multiple of 32.
    """
    header = manifest.header
    size = network.size_px or header.tile_px
    if network.mpp is not None:
        exact = header.tile_px * header.mpp / network.mpp
        size = round(exact)
        if abs(exact - size) > 0.01 * exact:
            raise InputError(
                f"at mpp {network.mpp:g} a tile of {manifest.uri} ({header.tile_px} px at {header.mpp:g} um/px) has "
                f"{exact:.2f} px, no whole number; set size_px instead."
            )
    if size > header.tile_px:
        raise InputError(
            f"the network would see {size} px and the tiles of {manifest.uri} have {header.tile_px} px at "
            f"{header.mpp:g} um/px; choose at most {header.tile_px} px, or an mpp of at least {header.mpp:g}."
        )
    if dense and size % STRIDE:
        raise InputError(f"tiles of {size} px do not fit the network's stride of 32; set size_px to a multiple of 32.")
    return size


def card_of(
    config: RunConfig,
    network: Network,
    manifest: Manifest,
    outputs: OutputSpec,
    *,
    teacher: str | None = None,
    cases: frozenset[str] | None = None,
) -> ModelCard:
    """The card of the model that a run will make. `teacher` is its teacher's digest, `cases` as in a stream.

    What taught its encoder and its teacher is in it. Raises InputError when the network cannot see tiles of its size.
    """
    mean, std = _normalisation(network)
    card = ModelCard(
        kind=outputs.kind,
        multi_label=outputs.multi_label,
        encoder=network.encoder,
        decoder_channels=network.decoder_channels if outputs.dense else (),
        classes=outputs.classes,
        mean=mean,
        std=std,
        tile_px=manifest.header.tile_px,
        tile_mpp=manifest.header.mpp,
        size_px=size_of(network, manifest, outputs.dense),
        tiles_digest=manifest.header.digest,
        train_cases=case_digests(manifest, config.data.train, cases),
        teacher_digest=teacher,
        histill=histill.__version__,
        val_cases=case_digests(manifest, config.data.val),
        taught_on=(TaughtOn(digest=manifest.header.digest, uri=absolute(config.data.tiles)),),
    )
    card = with_lineage(card, config, network)
    model = build(card)
    if isinstance(model, Classifier):
        check_side(model, card.size_px)
    return card


def _normalisation(network: Network) -> tuple[Rgb, Rgb]:
    """Mean and deviation of RGB in 0..1: those that pretrained weights were made with, else ImageNet's."""
    stated = timm.get_pretrained_cfg(network.encoder) if network.weights is not None else None
    return (stated.mean, stated.std) if stated is not None else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def check_resolutions(card: ModelCard, teacher_px: int, config: DistillConfig) -> None:
    """Raises InputError unless the teacher, which sees a tile at `teacher_px`, sees it finer than the student does.

    Its resolution must be a whole multiple of the student's, but for `config.resize`.
    """
    teacher_mpp = card.tile_mpp * card.tile_px / teacher_px
    if card.size_px > teacher_px:
        raise InputError(
            f"the student would see tiles at {card.size_px} px ({card.mpp:.4g} um/px) and its teacher sees them at "
            f"{teacher_px} px ({teacher_mpp:.4g} um/px); set student.size_px to at most {teacher_px}."
        )
    if teacher_px % card.size_px and not config.resize:
        whole = [str(teacher_px // by) for by in (1, 2, 4, 8, 16) if teacher_px % by == 0]
        raise InputError(
            f"the student's {card.mpp:.4g} um/px are {teacher_px / card.size_px:.4g} times the teacher's "
            f"{teacher_mpp:.4g}, no whole number; set student.size_px to one such as {', '.join(whole)}, or "
            "resize=true."
        )


def check_masks(manifest: Manifest, *splits: str) -> None:
    """Raises InputError when a tile of one of `splits` has no mask."""
    for split in splits:
        rows = manifest.rows_of(split)
        without = rows[~manifest.table["has_mask"].to_numpy()[rows]]
        if len(without):
            name = manifest.table["tile_id"][int(without[0])].as_py()
            raise InputError(
                f"{len(without)} tiles of split {split!r} in {manifest.uri} have no mask (first: {name}); "
                "masks are learned from, so ingest them with a mask column or name another split."
            )
