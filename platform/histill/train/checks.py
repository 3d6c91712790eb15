"""What every training run is checked for before Ray starts, and the card of the model that it will make."""

import hashlib

import pyarrow as pa
import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import histill
from histill.artifacts.model_folder import ModelCard
from histill.config.runs import Network, RunConfig
from histill.errors import InputError
from histill.models.students import check_encoder
from histill.storage.control import probe
from histill.stream.places import balance_groups
from histill.stream.views import Views, check_window
from histill.tiles.manifest import Manifest, read_manifest
from histill.train.run_folder import open_record

Rgb = tuple[float, float, float]


def checked_manifest(config: RunConfig, kind: str, network: Network) -> Manifest:
    probe(config.runs, config.storage)  # first of all: it tells what is wrong with credentials and buckets
    open_record(config, kind)
    manifest = read_manifest(config.data.tiles, config.storage)
    check_encoder(network.encoder)
    check_window(config.data.augment, manifest.header.tile_px, Views(size_of(network, manifest)))
    for split in (config.data.train, config.data.val):
        manifest.rows_of(split)
    if config.data.balance is not None:
        balance_groups(manifest, manifest.rows_of(config.data.train), config.data.balance)
    return manifest


def size_of(network: Network, manifest: Manifest) -> int:
    """The side, in pixels, at which `network` sees a whole tile.

    Raises InputError when it is above the tile's, no multiple of 32, or no whole number of pixels at `network.mpp`.
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
    if size % 32:
        raise InputError(f"tiles of {size} px do not fit the network's stride of 32; set size_px to a multiple of 32.")
    return size


def card_of(
    config: RunConfig,
    network: Network,
    manifest: Manifest,
    classes: tuple[str, ...],
    *,
    teacher: str | None = None,
    classification: bool = False,
    cases: frozenset[str] | None = None,
) -> ModelCard:
    """The card of the model that a run will make. `teacher` is its teacher's digest, `cases` as in a stream."""
    mean, std = _normalisation(network)
    return ModelCard(
        kind="classification" if classification else "segmentation",
        encoder=network.encoder,
        decoder_channels=() if classification else network.decoder_channels,
        classes=classes,
        mean=mean,
        std=std,
        tile_px=manifest.header.tile_px,
        tile_mpp=manifest.header.mpp,
        size_px=size_of(network, manifest),
        tiles_digest=manifest.header.digest,
        train_cases=cases_digest(manifest, config.data.train, cases),
        teacher_digest=teacher,
        histill=histill.__version__,
    )


def _normalisation(network: Network) -> tuple[Rgb, Rgb]:
    """Mean and deviation of RGB in 0..1: those that pretrained weights were made with, else ImageNet's."""
    stated = timm.get_pretrained_cfg(network.encoder) if network.weights is not None else None
    return (stated.mean, stated.std) if stated is not None else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def cases_digest(manifest: Manifest, split: str, cases: frozenset[str] | None = None) -> str:
    """SHA-256 over the sorted names of a split's cases, or of those of them that are in `cases`."""
    names = manifest.table["case"].take(pa.array(manifest.rows_of(split, cases))).unique().to_pylist()
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


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
