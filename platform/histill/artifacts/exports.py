"""Export a model to the formats that hospitals run, and compare each with the model on real tiles.

Every format takes raw decoded pixels: the normalization is inside.
"""

import contextlib
import copy
import inspect
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from histill.artifacts.model_folder import ModelCard, TaughtBy
from histill.cluster.progress import count_of
from histill.storage.scratch import scratch_folder
from histill.stream import prepare_tile

PT2_NAME, ONNX_NAME, INTERFACE_NAME, README_NAME = "model.pt2", "model.onnx", "interface.json", "README.md"
PREPARE_NAME = "prepare_tile.py"
INPUT, LOGITS, EMBEDDINGS = "pixels", "logits", "embeddings"
BATCH = "batch"  # the dimension of any size
_MOST_AT_ONCE = 4096


def export_model(model: nn.Module, card: ModelCard) -> dict[str, bytes]:
    """Export `model` as a torch.export program (`model.pt2`) and as ONNX (`model.onnx`), with a dynamic batch size.

    `model` itself is unchanged, and stays on its device.
    """
    example = torch.zeros(2, 3, card.size_px, card.size_px)  # two: a batch of one would be specialized
    batch = torch.export.Dim(BATCH, min=1, max=_MOST_AT_ONCE)
    model = _copy_to_cpu(model)
    with _quiet(), scratch_folder() as folder:
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
        archive = io.BytesIO()
        torch.export.save(program, archive)
        path = os.path.join(folder, ONNX_NAME)
        graph = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=[name_output(card)], verbose=False
        )
        assert graph is not None
        graph.save(path)
        return {PT2_NAME: archive.getvalue(), ONNX_NAME: _name_batch(path)}


def _name_batch(path: str) -> bytes:
    """The ONNX file at `path` with its dynamic dimension called `batch`: torch names it by a symbol such as s96."""
    import onnx

    model = onnx.load(path)
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if symbol in dimension.dim_param:
                dimension.dim_param = dimension.dim_param.replace(symbol, BATCH)
    return model.SerializeToString()


def name_output(card: ModelCard) -> str:
    """The name of what a format returns."""
    return EMBEDDINGS if card.kind == "encoder" else LOGITS


def _copy_to_cpu(model: nn.Module) -> nn.Module:
    """Copy for evaluation, because `nn.Module.cpu` and `eval` would change the caller's module in place."""
    return copy.deepcopy(model).cpu().eval()


def read_preparation() -> dict[str, bytes]:
    """The source of the program that prepares a tile's bytes as input, the same code that histill decodes with."""
    return {PREPARE_NAME: inspect.getsource(prepare_tile).encode()}


@torch.inference_mode()
def measure_differences(
    model: nn.Module, formats: Mapping[str, bytes], tiles: Tensor, card: ModelCard, cut: Sequence[bytes]
) -> dict[str, float]:
    """By format, the largest difference of its logits from the model's, for the whole batch or the first tile alone.

    The model sees `tiles`, uint8 [N, 3, S, S], from histill's stream; the formats see what `prepare_tile` makes of
    `cut`, the encoded bytes of the same N tiles, as an external program would.
    """
    import onnxruntime

    prepared = np.stack([prepare_tile.prepare_tile(each, card.tile_px, card.size_px) for each in cut])
    pixels = torch.from_numpy(prepared.transpose(0, 3, 1, 2).astype(np.float32))
    expected = _copy_to_cpu(model)(tiles.float())
    program = torch.export.load(io.BytesIO(formats[PT2_NAME])).module()
    session = onnxruntime.InferenceSession(formats[ONNX_NAME], providers=["CPUExecutionProvider"])

    def onnx(batch: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {INPUT: batch.numpy()})[0]))

    found = {}
    for name, run in ((PT2_NAME, program), (ONNX_NAME, onnx)):
        alone = (run(pixels[:1]) - expected[:1]).abs().max()
        found[name] = float(torch.maximum((run(pixels) - expected).abs().max(), alone))
    return found


def describe_interface(
    card: ModelCard,
    digest: str,
    found: Mapping[str, float],
    license: str | None,
    taught_by: Sequence[TaughtBy] = (),
) -> dict[str, Any]:
    """The inputs and outputs of the exported formats, for programs that use them, and the model's provenance."""
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
        "largest_difference": dict(found),
        "largest_difference_of": f"{name_output(card)}, from the bytes of a cut tile on: the format with prepared_by, "
        "and histill",
        "model_digest": digest,
        "tiles_digest": card.tiles_digest,
        "teacher_digest": card.teacher_digest,
        "histill": card.histill,
        "torch": torch.__version__,
        "license": license,
        "taught_by": [each.model_dump(mode="json") for each in taught_by],
    }


def write_readme(card: ModelCard, told: Mapping[str, Any], figures: Mapping[str, float], scored_on: str) -> str:
    """The human-readable model card in Markdown: the model, its inputs and outputs, and its scores."""
    activation = told["output"]["activation"]
    probabilities = f", {activation} gives probabilities" if activation else ""
    lines = [
        "# An encoder of tiles"
        if card.kind == "encoder"
        else f"# A {'segmenter' if card.outputs.dense else 'classifier'} of {', '.join(card.classes)}",
        "",
        f"- network: {card.encoder}, for H&E tiles at {card.mpp:.4g} um/px",
        f"- input: `{INPUT}`, float32 [batch, 3, {card.size_px}, {card.size_px}], RGB 0 to 255, from tiles of "
        f"{card.tile_px} px at {card.tile_mpp:.4g} um/px by `{PREPARE_NAME}`; normalization is inside",
        f"- output: `{name_output(card)}`, float32 {json.dumps(told['output']['shape'])}{probabilities}",
        f"- license: {told['license'] or 'not stated'}",
        *(f"- taught by: {_name_license(each)}" for each in told["taught_by"]),
        f"- trained on tiles {card.tiles_digest}, of {count_of(len(card.train_cases), 'case')}",
        f"- teacher: {card.teacher_name}",
        f"- model: {told['model_digest']}, histill {card.histill}",
        "",
        f"On {scored_on}:",
        "",
        *(f"- {name.replace('_', ' ')}: {value:.4f}" for name, value in figures.items()),
        "",
        "Formats, with the largest difference of their answers from the model's within histill, on real tiles",
        f"prepared from their bytes by `{PREPARE_NAME}` (it needs numpy, OpenCV and simplejpeg):",
        "",
        "- `model.safetensors` with `model.json`: for further training",
        *(f"- `{name}`: {value:.2g}" for name, value in told["largest_difference"].items()),
        "",
        "Research software: not a medical device, and not tested for diagnosis.",
    ]
    return "\n".join(lines) + "\n"


def _name_license(teacher: Mapping[str, Any]) -> str:
    """One of `taught_by` of the interface, in words."""
    license, use = teacher["license"], {True: "allowed", False: "forbidden", None: "not on record"}
    if license is None:
        return f"{teacher['name']}, whose license is not on record"
    commercial = use[license["commercial"]]
    return f"{teacher['name']}, {license['name']}, commercial use of this model {commercial} ({license['source']})"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings and logs, which no user can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
