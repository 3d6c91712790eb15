"""Make a version's files a model that MLflow loads and serves: flavors, signature, input example, requirements.

`python_function` is code in the folder (`tile_model.py`), and `onnx` is there if the version has an ONNX file. Neither
holds a pickle.
"""

import json
import platform
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from histill.artifacts.checksums import CHECKSUMS_NAME, list_checksums
from histill.artifacts.interface import PREPARE_NAME, read_preparation
from histill.artifacts.model_folder import ONNX_NAME, ModelCard
from histill.version import __version__

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

CODE_NAME = "tile_model.py"
_EXAMPLE, _SERVED_EXAMPLE = "input_example.json", "serving_input_example.json"
_REQUIREMENTS, _ENVIRONMENT = "requirements.txt", "python_env.yaml"


def complete_model(
    folder: Path,
    card: ModelCard,
    metadata: dict[str, Any],
    onnx: bytes | None,
    *,
    model_id: str | None = None,
    run_id: str | None = None,
) -> None:
    """Add to the model folder `folder` what makes it an MLflow model.

    Args:
        folder: holds weights and card, which stay as they are.
        card: the folder's.
        metadata: what the model's page says besides, as JSON.
        onnx: the version's ONNX file; None: `python_function` runs the weights, which needs histill.
        model_id: id of the LoggedModel that the folder is of.
        run_id: id of the run that it came from.
    """
    from mlflow.models import Model
    from mlflow.pyfunc import add_to_model
    from mlflow.pyfunc.loaders import code_model

    programs = {CODE_NAME: files(__package__).joinpath(CODE_NAME).read_bytes()} | read_preparation()
    for name, program in programs.items():
        (folder / name).write_bytes(program)
    _write_example(folder, card)
    _write_requirements(folder, with_onnx=onnx is not None)
    model = Model(
        model_id=model_id,
        run_id=run_id,
        signature=describe_signature(card),
        saved_input_example_info={
            "artifact_path": _EXAMPLE, "serving_input_path": _SERVED_EXAMPLE, "type": "ndarray"
        },
        metadata=metadata,
    )  # fmt: skip
    if onnx is not None:
        (folder / ONNX_NAME).write_bytes(onnx)
        model.add_flavor(
            "onnx", onnx_version=version("onnx"), data=ONNX_NAME, providers=["CPUExecutionProvider"], code=None
        )
    stored = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / CHECKSUMS_NAME).write_bytes(list_checksums(stored))
    add_to_model(model, code_model.__name__, python_env=_ENVIRONMENT, model_code_path=CODE_NAME)
    model.model_size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    model.save(str(folder / "MLmodel"))


def describe_signature(card: ModelCard) -> "ModelSignature":
    """Tiles as the network sees them -> logits by class, or embeddings."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    side, number = card.size_px, np.dtype(np.float32)
    tiles = Schema([TensorSpec(np.dtype(np.uint8), (-1, 3, side, side))])
    if card.kind == "encoder":
        assert card.width is not None
        return ModelSignature(tiles, Schema([TensorSpec(number, (-1, card.width))]))
    if card.outputs.dense:
        return ModelSignature(tiles, Schema([TensorSpec(number, (-1, side, side), name) for name in card.classes]))
    return ModelSignature(tiles, Schema([ColSpec("float", name) for name in card.classes]))


def describe_model(card: ModelCard, digest: str, license: str | None) -> dict[str, Any]:
    """What a program that uses the model must know of it besides the signature, and where it is from."""
    return {
        "encoder": card.encoder,
        "kind": card.kind,
        "classes": list(card.classes),
        "activation": None if card.kind == "encoder" else card.outputs.activation,
        "microns_per_pixel": card.mpp,
        "size_px": card.size_px,
        "tile_px": card.tile_px,
        "tile_microns_per_pixel": card.tile_mpp,
        "prepared_by": PREPARE_NAME,
        "model_digest": digest,
        "tiles_digest": card.tiles_digest,
        "teacher_digest": card.teacher_digest,
        "license": license,
        "histill": card.histill,
    }


def _write_example(folder: Path, card: ModelCard) -> None:
    """One tile of the training tiles' mean color: a real one would be a patient's."""
    color = (np.array(card.mean) * 255).round().astype(np.uint8)
    tile = np.broadcast_to(color[None, :, None, None], (1, 3, card.size_px, card.size_px)).tolist()
    (folder / _EXAMPLE).write_text(json.dumps(tile))
    (folder / _SERVED_EXAMPLE).write_text(json.dumps({"inputs": tile}))


def _write_requirements(folder: Path, *, with_onnx: bool) -> None:
    packages = ["mlflow", "numpy", "pandas", *(["onnx", "onnxruntime"] if with_onnx else [])]
    lines = [f"{name}=={version(name)}" for name in packages]
    lines += [] if with_onnx else [f"histill=={__version__}"]
    (folder / _REQUIREMENTS).write_text("\n".join(lines) + "\n")
    environment = {"python": platform.python_version(), "dependencies": [f"-r {_REQUIREMENTS}"]}
    (folder / _ENVIRONMENT).write_text(yaml.safe_dump(environment))
