"""Describe the inputs, outputs and files of an exported model, for programs that use it."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from histill.artifacts.formats.made import ListedFormat
from histill.artifacts.formats.subject import BATCH, INPUT, name_output
from histill.artifacts.model_folder import ModelCard, TaughtBy
from histill.stream import prepare_tile

INTERFACE_NAME = "interface.json"
PREPARE_NAME = "prepare_tile.py"


def read_preparation() -> dict[str, bytes]:
    """The source of the program that prepares a tile's bytes as input, the same code that histill decodes with."""
    return {PREPARE_NAME: inspect.getsource(prepare_tile).encode()}


def describe_interface(
    card: ModelCard,
    digest: str,
    formats: Sequence[ListedFormat],
    license: str | None,
    taught_by: Sequence[TaughtBy] = (),
    sha256: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The inputs and outputs of the exported formats, for programs that use them, and the model's provenance.

    `sha256` has that of each file, by path.
    """
    import cv2

    side = card.size_px
    shape: list[int | str | None] = [BATCH, card.width if card.kind == "encoder" else len(card.classes)]
    shape += [side, side] if card.outputs.dense else []
    return {
        "input": {
            "name": INPUT,
            "dtype": "float32",
            "shape": [BATCH, 3, side, side],
            "values": "RGB, 0 to 255; mean and standard deviation are applied inside",
            "microns_per_pixel": card.mpp,
            "cut_at": {"side_px": card.tile_px, "microns_per_pixel": card.tile_mpp},
            "prepared_by": {
                "program": PREPARE_NAME,
                "call": f"prepare_tile(tile, tile_px={card.tile_px}, size_px={side})",
                "steps": prepare_tile.list_steps(card.tile_px, side),
                "made_with": {"simplejpeg": version("simplejpeg"), "opencv": cv2.__version__},
            },
        },
        "output": {
            "name": name_output(card),
            "dtype": "float32",
            "shape": shape,
            "classes": list(card.classes),
            "activation": None if card.kind == "encoder" else card.outputs.activation,
        },
        "normalization": {"mean": list(card.mean), "std": list(card.std)},
        "formats": {each.format: _describe_format(each) for each in formats},
        "largest_difference": {
            next(iter(each.files)): each.difference for each in formats if not each.skipped and not each.refused
        },
        "largest_difference_of": f"{name_output(card)}, from the bytes of a cut tile on: the format with prepared_by, "
        "and histill",
        "sha256": dict(sha256 or {}),
        "model_digest": digest,
        "tiles_digest": card.tiles_digest,
        "teacher_digest": card.teacher_digest,
        "histill": card.histill,
        "torch": torch.__version__,
        "license": license,
        "taught_by": [each.model_dump(mode="json") for each in taught_by],
    }


def _describe_format(made: ListedFormat) -> dict[str, Any]:
    """The files of a format and, if it is quantized, how it compares with the float model; or why there are none."""
    if made.skipped:
        return {"skipped": made.skipped}
    if made.rounded is None:
        return {"files": list(made.files)}
    compared = {key: value for key, value in dataclasses.asdict(made.rounded).items() if key != "layer_errors"}
    if made.refused:
        return {"skipped": "it loses more than the margin against the float model", "quantized": compared}
    return {"files": list(made.files), "quantized": compared}
