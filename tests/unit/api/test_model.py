"""A model loaded in a notebook answers arrays as its network answers a stream."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import histill
from histill.artifacts import model_folder
from histill.artifacts.model_folder import ModelCard
from histill.config.common import ShardCache, Storage
from histill.config.runs import BOUNDARY
from histill.errors import InputError

pytestmark = pytest.mark.unit

CARD: dict[str, Any] = {
    "encoder": "csat_tiny", "decoder_channels": (), "classes": ("benign", "tumor"), "mean": (0.5, 0.5, 0.5),
    "std": (0.2, 0.2, 0.2), "tile_px": 64, "tile_mpp": 0.5, "size_px": 32, "tiles_digest": "0", "train_cases": (),
    "histill": "0",
}  # fmt: skip


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def write(**changes: Any) -> histill.Model:
        card = ModelCard.model_validate(CARD | changes)
        torch.manual_seed(0)
        model_folder.save(str(tmp_path), model_folder.build(card), card)
        return histill.load_model(str(tmp_path))

    return write


@pytest.fixture
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


def halved(tiles: np.ndarray) -> torch.Tensor:
    """Float pixels [B, 3, 32, 32]: means of 2 x 2."""
    small = tiles.astype(np.float64).reshape(len(tiles), 32, 2, 32, 2, 3).mean((2, 4))
    return torch.from_numpy(small.transpose(0, 3, 1, 2)).float()


def test_a_classifier_gives_probabilities_and_names(make: Any, tiles: np.ndarray) -> None:
    model = make(kind="classification")
    found = model.predict(tiles)
    with torch.no_grad():
        expected = model.network(halved(tiles)).double().softmax(1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert model.decide(tiles) == [(model.classes[int(each.argmax())],) for each in expected]
    assert model.embed(tiles).shape == (5, 64)
    assert (model.predict(tiles[:0]).shape, model.embed(tiles[:0]).shape) == ((0, 2), (0, 64))
    assert model.decide(tiles[:0]) == []
    assert repr(model).startswith("Model(classification, csat_tiny for benign, tumor; tiles of 64 px at 0.5 um/px")


def test_every_form_of_the_same_pixels_gives_the_same(make: Any, tiles: np.ndarray) -> None:
    model = make(kind="classification")
    expected = model.predict(tiles)
    first = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    for form in (first, first.contiguous(), list(tiles), halved(tiles).round().byte()):
        np.testing.assert_allclose(model.predict(form), expected, atol=2e-2)
    np.testing.assert_allclose(model.predict(tiles[0]), expected[:1], atol=1e-5)


def test_several_labels_are_those_above_a_half(make: Any, tiles: np.ndarray) -> None:
    model = make(kind="classification", multi_label=True, classes=("a", "b", "c"))
    found = model.predict(tiles)
    assert model.decide(tiles) == [
        tuple(name for name, each in zip("abc", row, strict=True) if each > 0.5) for row in found
    ]


def test_a_segmenter_answers_each_pixel_of_the_tile(make: Any, tiles: np.ndarray) -> None:
    model = make(decoder_channels=(16, 16, 8, 8, 8), classes=("background", "a", "b", BOUNDARY))
    found = model.predict(tiles)
    assert model.classes == ("background", "a", "b")
    assert found.shape == (5, 3, 64, 64)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    with pytest.raises(InputError, match="decide is for classifiers"):
        model.decide(tiles)


@pytest.mark.parametrize("side", [64, 32])
def test_a_segmenter_gives_its_objects_at_the_size_of_the_tile(make: Any, tiles: np.ndarray, side: int) -> None:
    """A square micron is 4 pixels of the tile, and 1 at the network's input size."""
    model = make(kind="segmentation", decoder_channels=(16, 16, 8, 8, 8), classes=("background", "nucleus"))
    seen = tiles if side == 64 else np.ascontiguousarray(tiles[:, ::2, ::2])
    foreground = model.predict(seen)[:, 1].numpy() > 0.5
    assert 0 < foreground.mean() < 1
    whole = model.find_objects(seen, min_um2=0)
    for marked, found in zip(foreground, whole, strict=True):
        assert (found.labels.shape, found.labels.max()) == ((side, side), len(found.classes))
        np.testing.assert_array_equal(found.labels > 0, marked)
    least = 4.0
    areas = np.concatenate([each.areas for each in model.find_objects(seen, min_um2=least)])
    per_um2 = (side / 32) ** 2
    assert (areas >= least * per_um2).all()
    assert len(areas) == sum(int((each.areas >= least * per_um2).sum()) for each in whole) > 0
    with pytest.raises(InputError, match="find_objects is for segmenters"):
        make(kind="classification").find_objects(tiles)


def test_an_encoder_gives_embeddings(make: Any, tiles: np.ndarray) -> None:
    model = make(kind="encoder", classes=(), width=64)
    with torch.no_grad():
        np.testing.assert_allclose(model.predict(tiles), model.network(halved(tiles)), atol=1e-5)
    assert repr(model).startswith("Model(encoder, csat_tiny; ")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((5, 64, 64, 4), np.uint8), r"\[5, 64, 64, 4\]; \[B, 3, S, S\] or \[B, S, S, 3\] was expected"),
        (np.zeros((5, 48, 48, 3), np.uint8), "where S is 32 or 64: cut or resize them to 64 px at 0.5 um/px"),
        (np.zeros((5, 64, 64, 3), np.float32), "float32; uint8 values in 0..255 were expected"),
        (np.zeros((64, 64), np.uint8), "was expected"),
    ],
)
def test_other_arrays_are_refused(make: Any, wrong: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(kind="classification").predict(wrong)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a model folder"):
        histill.load_model(str(tmp_path / "none"))


def test_an_engine_answers_in_the_networks_place(
    write_small_model: Callable[[str, Path], str],
    node: Storage,
    tiles: np.ndarray,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = write_small_model("segmentation", tmp_path)
    model, quick = histill.load_model(folder), histill.load_model(folder, engine="onnxruntime", storage=node)
    np.testing.assert_allclose(quick.predict(tiles), model.predict(tiles), atol=1e-4)
    np.testing.assert_allclose(quick.predict(tiles[:2]), model.predict(tiles[:2]), atol=1e-4)
    assert capfd.readouterr().err.count("engine: onnxruntime ") == 1
    assert quick.predict(tiles[:0]).shape == (0, 2, 64, 64)
    assert quick.find_objects(tiles[:0]) == []


def test_a_version_without_an_onnx_file_is_exported_when_it_is_asked(
    make: Any, tiles: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(kind="classification", encoder="resnet10t")

    def fetch(uri: str, tracking: object, into: Path, *, with_onnx: bool) -> str:
        assert with_onnx
        return str(shutil.copytree(tmp_path, into / "model"))

    monkeypatch.setattr("histill.registry.fetch.fetch_model", fetch)
    with tempfile.TemporaryDirectory() as node:
        storage = Storage(cache=ShardCache(folder=node, max_gb=1))
        quick = histill.load_model("models:/n/1", engine="onnxruntime", storage=storage)
        np.testing.assert_allclose(quick.predict(tiles), model.predict(tiles), atol=1e-4)
        with torch.no_grad():
            quick.network.network.fc.bias.add_(1)
        with pytest.raises(InputError, match=r"engine=onnxruntime does not run models:/n/1 \(its answers differ"):
            quick.predict(tiles[:1])


def test_on_other_devices_torch_runs_the_model_there(make: Any, tiles: np.ndarray, tmp_path: Path) -> None:
    make(kind="classification")
    with pytest.raises(InputError, match="engine=openvino runs models on CPUs, and the device is meta") as raised:
        histill.load_model(str(tmp_path), device="meta", engine="openvino")
    assert raised.value.code == "option-not-applicable"
    model = histill.load_model(str(tmp_path), device="meta", engine="auto")
    for _ in range(2):
        assert model._run(model._pixels(tiles)).device.type == "meta"
