"""The MLflow model of a version, loaded by MLflow from a local folder, without a server."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from histill.artifacts import model_folder
from histill.artifacts.checksums import CHECKSUMS_NAME
from histill.artifacts.formats.subject import Subject
from histill.artifacts.interface import PREPARE_NAME, read_preparation
from histill.artifacts.model_folder import ModelCard
from histill.config.common import Storage
from histill.registry.mlflow_model import complete_model, describe_model

pytestmark = pytest.mark.unit

SIDE = 32
FORMS: dict[str, dict[str, Any]] = {
    "classification": {"encoder": "resnet_gn", "decoder_channels": (), "classes": ("stroma", "tumour")},
    "segmentation": {
        "encoder": "csat_tiny", "decoder_channels": (8, 8, 8, 8, 8), "classes": ("background", "nucleus")
    },
    "encoder": {"encoder": "resnet_gn", "decoder_channels": (), "classes": (), "width": 256},
}  # fmt: skip


def make_folder(folder: Path, kind: str, onnx: bytes | None = None) -> torch.nn.Module:
    """A model folder, without an ONNX file unless one is given, as an MLflow model; returns its network."""
    card = ModelCard.model_validate(
        FORMS[kind] | {
            "kind": kind, "mean": (0.7, 0.5, 0.7), "std": (0.2, 0.2, 0.2), "tile_px": 64, "tile_mpp": 0.25,
            "size_px": SIDE, "tiles_digest": "cd" * 32, "train_cases": (), "histill": "0.1.0",
        }
    )  # fmt: skip
    torch.manual_seed(0)
    network = model_folder.build(card).eval()
    model_folder.save(str(folder), network, card)
    complete_model(folder, card, describe_model(card, "ab" * 32, "CC-BY-4.0"), onnx)
    return network


@pytest.fixture(autouse=True)
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")


def draw(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)


@pytest.mark.parametrize("kind", FORMS)
def test_mlflow_gets_the_answers_of_the_network_in_the_form_that_the_signature_says(kind: str, tmp_path: Path) -> None:
    network = make_folder(tmp_path, kind)
    model, tiles = mlflow.pyfunc.load_model(str(tmp_path)), draw(35)  # more than the network sees at once
    with torch.inference_mode():
        expected = network(torch.from_numpy(tiles).float()).numpy()
    said = model.predict(tiles)
    outputs = model.metadata.signature.outputs
    if kind == "encoder":
        assert outputs.inputs[0].shape == (-1, 256)
        np.testing.assert_allclose(said, expected, atol=1e-5)
        return
    assert outputs.input_names() == list(FORMS[kind]["classes"])
    if kind == "segmentation":
        assert outputs.inputs[0].shape == (-1, SIDE, SIDE)
    for channel, name in enumerate(FORMS[kind]["classes"]):
        np.testing.assert_allclose(said[name], expected[:, channel], atol=1e-5)
    model.predict(model.input_example)
    none = model.predict(tiles[:0])
    assert none["nucleus"].shape == (0, SIDE, SIDE) if kind == "segmentation" else none.shape == (0, 2)


@pytest.mark.parametrize("kind", ["classification", "encoder"])
def test_no_tiles_are_answered_by_an_onnx_file_too(kind: str, tmp_path: Path) -> None:
    network = make_folder(tmp_path, kind)
    card = model_folder.read_card(str(tmp_path), Storage())
    (tmp_path / "onnx").mkdir()
    make_folder(tmp_path / "onnx", kind, Subject(network, card).onnx)
    model, tiles = mlflow.pyfunc.load_model(str(tmp_path / "onnx")), draw(3)
    assert (len(model.predict(tiles)), len(model.predict(tiles[:0]))) == (3, 0)


def test_a_table_of_tiles_is_what_an_array_of_them_is(tmp_path: Path) -> None:
    """As Parquet brings them to a scoring server: a column of flat tiles."""
    make_folder(tmp_path, "classification")
    model, tiles = mlflow.pyfunc.load_model(str(tmp_path)), draw(3)
    table = pd.DataFrame({"tiles": list(tiles.reshape(3, -1))})
    pd.testing.assert_frame_equal(model.predict(table), model.predict(tiles))


@pytest.mark.parametrize("tiles", [np.zeros((1, 3, 8, 8), np.uint8), np.zeros((1, 3, SIDE, SIDE), np.float32)])
def test_what_the_network_cannot_see_is_refused(tiles: np.ndarray, tmp_path: Path) -> None:
    make_folder(tmp_path, "classification")
    with pytest.raises(MlflowException, match="does not match expected"):
        mlflow.pyfunc.load_model(str(tmp_path)).predict(tiles)


@pytest.mark.parametrize("name", ["model.json", "model.onnx", "model.safetensors"])
def test_a_changed_byte_is_refused_by_mlflow_too(name: str, tmp_path: Path) -> None:
    make_folder(tmp_path, "classification", None if name == "model.safetensors" else b"a graph")
    changed = bytearray((tmp_path / name).read_bytes())
    changed[-2] ^= 1
    (tmp_path / name).write_bytes(changed)
    with pytest.raises(Exception, match=rf"{re.escape(name)} of .* is not the file that was .*; fetch it again"):
        mlflow.pyfunc.load_model(str(tmp_path))


def test_the_model_says_what_it_is_and_holds_no_pickle(tmp_path: Path) -> None:
    make_folder(tmp_path, "classification")
    described = Model.load(str(tmp_path))
    assert described.metadata["tile_px"] == 64
    assert described.metadata["microns_per_pixel"] == 0.5
    assert described.metadata["classes"] == ["stroma", "tumour"]
    assert (described.metadata["model_digest"], described.metadata["license"]) == ("ab" * 32, "CC-BY-4.0")
    assert described.model_size_bytes > (tmp_path / model_folder.WEIGHTS_NAME).stat().st_size
    assert (tmp_path / PREPARE_NAME).read_bytes() == read_preparation()[PREPARE_NAME]
    required = (tmp_path / "requirements.txt").read_text().split()
    assert required == [f"{name}=={version(name)}" for name in ("mlflow", "numpy", "pandas", "histill")]
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert files.keys() == {
        "MLmodel", "model.json", "model.safetensors", "tile_model.py", PREPARE_NAME, "input_example.json",
        "serving_input_example.json", "requirements.txt", "python_env.yaml", CHECKSUMS_NAME,
    }  # fmt: skip
    assert str(tmp_path).encode() not in files["MLmodel"]  # nor any other place on this machine
