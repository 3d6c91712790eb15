"""SHELL, a published segmenter of epithelium and stroma in H&E (PyPI lavlab-shell, MIT), as an ONNX teacher.

It was trained on optical densities of eosin, hematoxylin and both, at 1 um/px. What turns RGB into these is put before
the network, in the same ONNX file: its stain vectors and ranges are those of a sample of the tiles.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper

from experiments.common.tile_sets import STORAGE
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tiles.manifest import Manifest

SAMPLE = 200  # tiles
MPP, SIDE_PX = 1.0, 352
GLASS = 225  # gray value in 0..255
PERCENTILES = (1, 99)  # of the densities of tissue, which become 0 and 1
CARD = {
    "classes": ["lumen", "epithelium", "stroma"],  # what its channels show in biopsies whose glands are known
    "tile_mpp": MPP,
    "tile_px": SIDE_PX,
    "size_px": SIDE_PX,
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
    "output": "logits",
    "license": "MIT",
}


def shell_teacher(tiles: Manifest, folder: Path) -> Path:
    """Write SHELL for the colors of `tiles` as `teacher.onnx` with its card, unless it is there; the file's path."""
    path = folder / "teacher.onnx"
    if path.exists():
        return path
    spec = find_spec("shell")
    if spec is None or spec.origin is None or find_spec("macenko_pca") is None:
        raise SystemExit(
            "SHELL and its stain separation are missing: pip install --no-deps lavlab-shell macenko-pca (their "
            "dependencies would replace onnxruntime)."
        )
    network = onnx.load(Path(spec.origin).parent / "weights" / "model_v1.onnx")
    network = compose.add_prefix(network, "shell_", rename_inputs=False, rename_outputs=False)
    densities = _densities(_pixels(tiles), network)
    whole = compose.merge_models(densities, network, io_map=[("densities", "input")])
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(whole, path)
    path.with_suffix(".json").write_text(json.dumps(CARD, indent=1))
    return path


def _pixels(tiles: Manifest) -> np.ndarray:
    """The pixels of some training tiles, uint8 [N, 3]."""
    rows = tiles.rows_of("train")
    stream = TileStream(
        manifest=tiles,
        source=TileSource(tiles.uri, tiles.header.digest, STORAGE),
        split="train",
        only=rows[:: max(1, len(rows) // SAMPLE)],
        views=Views(tiles.header.tile_px),
        batch_size=32,
        worker=0,
        workers=1,
    )
    seen = torch.cat([batch.student[batch.valid] for batch in stream.exact_pass(padded=False)])
    return seen.permute(0, 2, 3, 1).reshape(-1, 3).numpy()


def _densities(pixels: np.ndarray, network: onnx.ModelProto) -> onnx.ModelProto:
    """A graph from RGB in 0..1 to the densities of eosin, hematoxylin and their mean, each from 0 to 1."""
    import macenko_pca

    glass = pixels.mean(1) > GLASS
    white = float(np.clip(pixels[glass].mean() if glass.sum() >= 100 else 240, 200, 255))
    image = pixels[~glass][None].astype(np.float64)
    stains = macenko_pca.rgb_separate_stains_macenko_pca(image, bg_int=[white])
    places = [
        macenko_pca.find_stain_index(macenko_pca.stain_color_map[name], stains) for name in ("eosin", "hematoxylin")
    ]
    weight = np.concatenate([np.linalg.pinv(stains)[places], np.full((1, 3), 1 / 3)])
    found = -np.log10(np.clip(image[0], 1, white) / white) @ weight.T
    low, high = np.percentile(found, PERCENTILES, axis=0)
    weight, bias = weight / (high - low)[:, None], -low / (high - low)
    constants = {
        "bytes": np.float32(255 / white),
        "black": np.float32(1 / white),
        "one": np.float32(1),
        "zero": np.float32(0),
        "weight": (-weight / np.log(10))[..., None, None].astype(np.float32),
        "bias": bias.astype(np.float32),
    }
    nodes = [
        helper.make_node("Mul", ["tiles", "bytes"], ["transmitted"]),
        helper.make_node("Clip", ["transmitted", "black", "one"], ["clipped"]),
        helper.make_node("Log", ["clipped"], ["absorbed"]),
        helper.make_node("Conv", ["absorbed", "weight", "bias"], ["separated"]),
        helper.make_node("Clip", ["separated", "zero", "one"], ["densities"]),
    ]
    shape = ["batch_size", 3, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "densities",
        [helper.make_tensor_value_info("tiles", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("densities", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=network.opset_import, ir_version=network.ir_version)
