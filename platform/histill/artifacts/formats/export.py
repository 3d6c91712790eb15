"""Export a model to the formats that hospitals run, and compare each with the model on real tiles."""

import importlib.util
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from histill.artifacts.formats.compare import measure_difference
from histill.artifacts.formats.made import Export, ListedFormat, Skipped
from histill.artifacts.formats.subject import Subject
from histill.artifacts.formats.table import FORMATS
from histill.artifacts.model_folder import ModelCard
from histill.config.promote_model import FormatName
from histill.errors import InputError
from histill.stream import prepare_tile


def check_packages(formats: Iterable[FormatName]) -> None:
    """Raise InputError if one of `formats` needs a package that is not installed."""
    for name in formats:
        package = FORMATS[name].package
        if package is not None and importlib.util.find_spec(package) is None:
            raise InputError(
                f"the format {name} needs the package {package}, which is not installed; "
                f"`pip install 'histill[{package}]'`, or leave {name} out of formats.",
                code="package-missing",
            )


def is_calibrated(formats: Iterable[FormatName]) -> bool:
    """Whether one of `formats` is made with training tiles."""
    return any(FORMATS[name].calibrated for name in formats)


def export_formats(
    model: nn.Module,
    card: ModelCard,
    formats: Iterable[FormatName],
    tiles: Tensor,
    cut: Sequence[bytes],
    training_tiles: Tensor | None = None,
) -> tuple[Export, ...]:
    """Make each of `formats`, with the largest difference of its answers from the model's on real tiles.

    The model, which is unchanged and stays on its device, sees `tiles`, uint8 [N, 3, S, S], from histill's stream; the
    formats see what `prepare_tile` makes of `cut`, the encoded bytes of the same N tiles, as other programs would.
    `training_tiles`, uint8 [M, 3, S, S], are needed where `is_calibrated`.
    """
    subject = Subject.copy_of(model, card, None if training_tiles is None else training_tiles.float())
    with torch.inference_mode():
        expected = subject.model(tiles.float())
    prepared = np.stack([prepare_tile.prepare_tile(each, card.tile_px, card.size_px) for each in cut])
    seen = torch.from_numpy(prepared.transpose(0, 3, 1, 2).astype(np.float32))
    return tuple(_export(name, subject, seen, expected) for name in formats)


def _export(name: FormatName, subject: Subject, tiles: Tensor, expected: Tensor) -> Export:
    made = FORMATS[name].make(subject)
    if isinstance(made, Skipped):
        return Export(ListedFormat(name, skipped=made.why))
    sizes = {path: len(data) for path, data in made.files.items()}
    return Export(ListedFormat(name, sizes, measure_difference(made.answer, tiles, expected)), made.files, made)
