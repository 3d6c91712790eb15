"""Export a model, compared with it on real tiles; to a folder without a registry and without judging it."""

import posixpath
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from histill.artifacts.formats.export import check_packages, export_formats
from histill.artifacts.formats.made import Export, ListedFormat
from histill.artifacts.hub_metadata import ScoredTiles
from histill.artifacts.lineage import list_teachers
from histill.artifacts.model_folder import check_like, load, resolve
from histill.artifacts.package import package_exports, read_own_files
from histill.artifacts.signature import SIGNATURE_NAME, check_signing_key
from histill.config.export_model import ExportConfig
from histill.config.promote_model import FormatName
from histill.config.score_model import HeldOut
from histill.errors import HistillError, InputError
from histill.evaluate.evaluator import Evaluator
from histill.evaluate.raw_tiles import read_cut_tiles
from histill.evaluate.shown_tiles import spread_tiles
from histill.storage.control import remove, write_bytes
from histill.storage.uris import join
from histill.tiles.manifest_file import read_manifest

_TILES_COMPARED = 16


@dataclass(frozen=True)
class Exported:
    """What was made of a model, and where."""

    output: str
    model_digest: str
    formats: tuple[ListedFormat, ...]


def export_compared(
    examiner: Evaluator, formats: Iterable[FormatName], training_tiles: Tensor | None = None
) -> tuple[Export, ...]:
    """Make `formats` of the examiner's model, compared with it on some of its tiles, as `export_formats` does."""
    tiles, cut = read_cut_tiles(examiner, spread_tiles(examiner, _TILES_COMPARED))
    return export_formats(examiner.network, examiner.card, formats, tiles, cut, training_tiles)


def export_model(model: str, config: ExportConfig) -> Exported:
    """Write the formats of the model folder or finished run `model`, with the model and what describes them, to
    `config.output`.

    Raises, before anything is written, InputError when the tiles are unlike the model's, the split is empty or no
    format is of such a model, and HistillError when a format answers otherwise than the model.
    """
    check_packages(config.formats)
    if config.signing_key is not None:
        check_signing_key(config.signing_key)
    folder = resolve(model, config.storage)
    network, card, digest = load(folder, config.storage)
    manifest = read_manifest(config.tiles, config.storage)
    check_like(card, manifest.header, config.tiles)
    held_out = HeldOut(tiles=config.tiles, split=config.split)
    reader = Evaluator(network, card, digest, manifest, held_out, config.storage, None, torch.device("cpu"))
    exports = export_compared(reader, config.formats)
    formats = tuple(each.listed for each in exports)
    if all(each.skipped for each in formats):
        raise InputError(
            f"nothing was exported of {model}: {', '.join(f'{each.format} ({each.skipped})' for each in formats)}; "
            "ask for another format.",
            code="option-not-applicable",
        )
    for each in formats:
        if each.difference is not None and not each.difference <= config.max_difference:
            raise HistillError(
                f"{each.format} of {model} answers otherwise than the model: a difference of {each.difference:.2g}, "
                f"where max_difference is {config.max_difference:g}; leave it out, and report how it was made.",
                code="export-differs",
            )
    own = read_own_files(folder, config.storage)
    files = own | package_exports(
        exports, card, digest, own,
        name=posixpath.basename(config.output.rstrip("/")), license=config.license, taught_by=list_teachers(card),
        figures={}, scored=ScoredTiles("no tiles", config.split, manifest.header.digest),
        signing_key=config.signing_key,
    )  # fmt: skip
    if SIGNATURE_NAME not in files:  # of an earlier export there, and of another list
        with suppress(FileNotFoundError):
            remove(join(config.output, SIGNATURE_NAME), config.storage)
    for path, data in files.items():
        write_bytes(join(config.output, path), data, config.storage)
    return Exported(config.output, digest, formats)
