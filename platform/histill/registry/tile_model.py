"""Answer tiles as an MLflow model: code that every registered version holds and that MLflow runs (models from code).

A version with an ONNX file needs numpy, pandas and onnxruntime, and any other histill. No pickle is loaded. histill
itself never imports this module.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

ONNX, CARD, CHECKSUMS = "model.onnx", "model.json", "SHA256SUMS"
AT_ONCE = 32  # tiles that the network sees at once; more of them take memory


class TileModel(PythonModel):
    """Tiles in, logits or embeddings out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the files beside this one. Raises ValueError if one is not as it was registered."""
        folder = Path(__file__).parent
        self.card = json.loads(read_verified(folder / CARD))
        onnx = folder / ONNX
        self.respond = open_onnx(read_verified(onnx)) if onnx.exists() else open_safetensors(folder)

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, object] | None = None
    ) -> pd.DataFrame | dict[str, np.ndarray] | np.ndarray:
        """Answer N tiles, RGB, uint8 [N, 3, S, S], as `prepare_tile.py` makes them of stored ones.

        Returns:
            Of a classifier, logits as a table with a column for each class; of a segmenter, logits by class, float32
            [N, S, S]; of an encoder, embeddings, float32 [N, D].
        """
        tiles = model_input if len(model_input) else np.zeros_like(model_input, shape=(1, *model_input.shape[1:]))
        answers = [self.respond(tiles[at : at + AT_ONCE]) for at in range(0, len(tiles), AT_ONCE)]
        whole = np.concatenate(answers)[: len(model_input)]  # networks cannot be asked about no tiles
        classes, kind = self.card["classes"], self.card["kind"]
        if kind == "segmentation":
            return {name: whole[:, channel] for channel, name in enumerate(classes)}
        return pd.DataFrame(whole, columns=classes) if kind == "classification" else whole


def read_verified(path: Path) -> bytes:
    """The file `path` of the version. Raises ValueError if its SHA-256 is not the one in the list beside it."""
    data = path.read_bytes()
    if f"{hashlib.sha256(data).hexdigest()}  {path.name}" not in (path.parent / CHECKSUMS).read_text().splitlines():
        raise ValueError(
            f"{path.name} of the version is not the file that was registered; fetch it again, and if it stays so "
            "investigate who changed it."
        )
    return data


def open_onnx(data: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """The network in an ONNX file as ONNX Runtime runs it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (asked,) = session.get_inputs()

    def respond(tiles: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {asked.name: tiles.astype(np.float32)})[0])

    return respond


def open_safetensors(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The network as histill builds it."""
    import torch

    from histill.artifacts import model_folder
    from histill.config.common import Storage

    network, _, _ = model_folder.load(str(folder), Storage())

    def respond(tiles: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(tiles).float()).numpy()

    return respond


set_model(TileModel())
