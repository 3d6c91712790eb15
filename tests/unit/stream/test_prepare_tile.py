"""The preparation code shipped with exported models gives the pixels that the stream shows."""

import contextlib
import io
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import simplejpeg
import torch
from PIL import Image

from histill.artifacts.formats.export import export_formats
from histill.artifacts.formats.made import Export, ListedFormat
from histill.artifacts.formats.subject import Subject
from histill.artifacts.interface import describe_interface, read_preparation
from histill.artifacts.model_folder import ModelCard, build, save
from histill.artifacts.readme import write_readme
from histill.config.common import Storage
from histill.config.score_model import HeldOut
from histill.evaluate.evaluator import Evaluator
from histill.evaluate.raw_tiles import read_cut_tiles
from histill.stream import prepare_tile as shipped
from histill.stream.decode import decode_image, downscale_area
from histill.stream.views import Placement, Views, view_into
from histill.tiles.manifest import Manifest
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

LISTED = [ListedFormat("onnx", {"model.onnx": 1000}, 1e-6), ListedFormat("timm", skipped="no such network")]
SIZES = [(512, 224), (512, 256), (256, 224), (64, 64), (500, 112), (512, 64), (300, 75), (250, 60), (97, 41), (32, 3)]


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., np.ndarray]:
    """The shipped file's function, loaded from the file alone, as an outside program would."""
    (name, source), *others = read_preparation().items()
    assert (name, others) == ("prepare_tile.py", [])
    path = tmp_path_factory.mktemp("exports") / name
    path.write_bytes(source)
    function: Callable[..., np.ndarray] = runpy.run_path(str(path))["prepare_tile"]
    return function


def drawn(side: int) -> np.ndarray:
    """Sharp edges in every channel, where downscaling methods differ most."""
    random = np.random.default_rng(side)
    blobs = random.integers(0, 256, (side // 3 + 1, side // 3 + 1, 3)).repeat(3, 0).repeat(3, 1)[:side, :side]
    return np.ascontiguousarray((blobs + random.integers(-9, 10, blobs.shape)).clip(0, 255).astype(np.uint8))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


FORMATS: dict[str, Callable[[np.ndarray], bytes]] = {
    "444": lambda pixels: simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="444"),
    "422": lambda pixels: simplejpeg.encode_jpeg(pixels, quality=75, colorsubsampling="422"),
    "420": lambda pixels: simplejpeg.encode_jpeg(pixels, quality=60, colorsubsampling="420"),
    "gray": lambda pixels: simplejpeg.encode_jpeg(pixels[..., :1].copy(), colorspace="GRAY", colorsubsampling="Gray"),
    "png": png,
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("tile_px", "size_px"), SIZES)
def test_the_pixels_are_the_streams(prepare: Callable[..., np.ndarray], tile_px: int, size_px: int, name: str) -> None:
    data = FORMATS[name](drawn(tile_px))
    shown = np.zeros((size_px, size_px, 3), np.uint8)
    view_into([shown], data, tile_px, Views(size_px), Placement(0, 0, tile_px, 0), None)
    np.testing.assert_array_equal(prepare(data, tile_px, size_px), shown)


def test_the_steps_are_those_that_are_told(prepare: Callable[..., np.ndarray]) -> None:
    """Each step in numpy: halves are means of 2 x 2 rounded half up, the rest is an exact area average."""
    pixels = drawn(500)
    told = shipped.list_steps(500, 112)
    assert told[1] == (
        "PNG: decode whole; mean of 2 x 2 pixels, rounded half up, to 250 px; mean of 2 x 2 pixels, rounded half up, "
        "to 125 px; mean over areas (cv2.INTER_AREA) to 112 px"
    )
    assert told[0].startswith("JPEG: decode at 1/4 in the DCT domain, to 125 px")
    halved = pixels.astype(int)
    for side in (250, 125):
        halved = (halved.reshape(side, 2, side, 2, 3).sum((1, 3)) + 2) >> 2
    edges = np.arange(113) * 125 / 112
    weights = np.array([np.clip(np.minimum(b, np.arange(1, 126)) - np.maximum(a, np.arange(125)), 0, 1)
                        for a, b in pairwise(edges)]) / (125 / 112)  # fmt: skip
    averaged = np.einsum("ik,jl,klc->ijc", weights, weights, halved)
    for tile in (pixels, png(pixels)):
        assert np.abs(prepare(tile, 500, 112) - averaged).max() < 0.51


def written(picture: Image.Image, **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **how)
    return file.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6  # a quarter turn
CLEAR = Image.fromarray(np.dstack([drawn(64), drawn(64)[..., 0]]))
DEEP = Image.fromarray(np.full((64, 64), 999, np.uint16))


@pytest.mark.parametrize(
    "data",
    [
        written(Image.fromarray(drawn(64)).quantize(50)),
        written(Image.fromarray(drawn(64)).convert("1")),
        written(Image.fromarray(drawn(64)[..., 0]).convert("LA")),
        written(Image.fromarray(drawn(64)), exif=TURNED),
        written(Image.fromarray(drawn(64)), transparency=(1, 2, 3)),
    ],
    ids=["palette", "two-valued", "opaque", "turned", "no pixel of the transparent color"],
)
def test_other_pngs_are_the_streams_as_well(prepare: Callable[..., np.ndarray], data: bytes) -> None:
    np.testing.assert_array_equal(prepare(data, 64, 32), downscale_area(decode_image(data, 64), 32))


@pytest.mark.parametrize(
    ("tile", "named"),
    [
        (written(CLEAR), "transparent in part"),
        (written(DEEP), "16 bits per channel"),
        (b"text", "neither a JPEG nor a PNG"),
        (png(drawn(32)), "32 x 32 x 3 and 64 x 64 x 3 was expected"),
        (FORMATS["444"](drawn(128)), "128 x 128 x 3 and 64 x 64 x 3 was expected"),
        (np.zeros((64, 64, 3)), "float64 and uint8"),
    ],
)
def test_what_is_no_such_tile_is_refused(
    prepare: Callable[..., np.ndarray], tile: bytes | np.ndarray, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        prepare(tile, 64, 32)


def test_a_tile_is_not_enlarged(prepare: Callable[..., np.ndarray]) -> None:
    with pytest.raises(ValueError, match="sees 65 px"):
        prepare(drawn(64), 64, 65)


def test_the_shipped_file_needs_neither_histill_nor_pillow() -> None:
    program = (
        "import sys\nsys.modules['PIL'] = sys.modules['histill'] = sys.modules['torch'] = None\n"
        f"exec({read_preparation()['prepare_tile.py'].decode()!r})\n"
        f"print(prepare_tile({png(drawn(32))!r}, 32, 8).shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "(8, 8, 3)\n", done.stderr


@pytest.fixture(scope="module")
def examiner(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Evaluator:
    """An evaluator of tiles of 64 px, JPEG and PNG, that the model sees at 32."""
    tiles, folder = tile_set(tmp_path_factory.mktemp("tiles"), labels=True), tmp_path_factory.mktemp("model")
    card = ModelCard(
        kind="classification", encoder="csat_tiny", decoder_channels=(), classes=("stroma", "tumour"), mean=(0.5,) * 3,
        std=(0.2,) * 3, tile_px=64, tile_mpp=0.5, size_px=32, tiles_digest="tiles", train_cases=(), histill="0",
    )  # fmt: skip
    torch.manual_seed(0)
    save(str(folder), build(card), card)
    return Evaluator.load(str(folder), HeldOut(tiles=tiles.uri, split="train"), Storage())


@contextlib.contextmanager
def moves(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """The ids of the modules that are moved to another device or dtype during the test."""
    moved: set[int] = set()
    apply = torch.nn.Module._apply

    def noted(module: torch.nn.Module, *how: Any, **more: Any) -> torch.nn.Module:
        moved.add(id(module))
        return apply(module, *how, **more)

    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.Module, "_apply", noted)
        yield moved


def differences(made: tuple[Export, ...]) -> list[float]:
    return [each.listed.difference for each in made if each.listed.difference is not None]


def test_parity_begins_at_the_cut_tiles_bytes(
    examiner: Evaluator, prepare: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = examiner.rows[[0, 3, 5, 14]]
    tiles, cut = read_cut_tiles(examiner, rows)
    stored = {row["tile_id"]: row["image"] for row in _shards(examiner.manifest)}
    assert cut == [stored[name] for name in read_table(examiner.manifest)["tile_id"].take(rows).to_pylist()]
    for seen, data in zip(tiles.permute(0, 2, 3, 1).numpy(), cut, strict=True):
        np.testing.assert_array_equal(prepare(data, 64, 32), seen)
    network = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(48, 2)).train()
    with moves(monkeypatch) as moved:
        made = export_formats(network, examiner.card, ("onnx", "pt2"), tiles, cut)
        formats = {path: data for each in made for path, data in each.contents.items()}
        session = onnxruntime.InferenceSession(formats["model.onnx"])
        assert {end.shape[0] for end in (*session.get_inputs(), *session.get_outputs())} == {"batch"}
        assert moved
        assert not moved & set(map(id, network.modules()))  # one on a GPU stays there
        assert network.training
    network.eval()
    assert [each.listed.format for each in made] == ["onnx", "pt2"]
    assert max(differences(made)) < 1e-4
    with torch.inference_mode():
        expected = network(tiles.float()).numpy()
    pixels = np.stack([prepare(data, 64, 32) for data in cut]).transpose(0, 3, 1, 2).astype(np.float32)
    (said,) = onnxruntime.InferenceSession(formats["model.onnx"]).run(None, {"pixels": pixels})
    np.testing.assert_allclose(said, expected, atol=1e-4)
    monkeypatch.setattr(  # a different preparation shows in the figure
        shipped, "prepare_tile", lambda data, *_: np.array(Image.open(io.BytesIO(data)).resize((32, 32)))
    )
    assert min(differences(export_formats(network, examiner.card, ("onnx",), tiles, cut))) > 1e-2


def test_an_interface_says_how_a_tile_is_prepared(examiner: Evaluator) -> None:
    told = describe_interface(examiner.card, "ab" * 32, LISTED, None)
    assert told["input"]["prepared_by"]["call"] == "prepare_tile(tile, tile_px=64, size_px=32)"
    assert "area" not in str(told["input"]["cut_at"])
    assert "1/2 in the DCT domain, to 32 px" in told["input"]["prepared_by"]["steps"][0]
    text = write_readme(examiner.card, told, {}, "tiles")
    assert "prepare_tile.py" in text
    assert "area averag" not in text


def test_an_exported_encoder_answers_with_embeddings(examiner: Evaluator) -> None:
    card = examiner.card.model_copy(update={"kind": "encoder", "classes": (), "width": 48})
    network = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten())
    (said,) = onnxruntime.InferenceSession(Subject.copy_of(network, card).onnx).get_outputs()
    assert (said.name, said.shape) == ("embeddings", ["batch", 48])
    told = describe_interface(card, "ab" * 32, LISTED, None)
    assert told["output"] == {
        "name": "embeddings", "dtype": "float32", "shape": ["batch", 48], "classes": [], "activation": None,
    }  # fmt: skip
    text = write_readme(card, told, {"balanced_accuracy": 0.5}, "tiles")
    assert text.startswith("# An encoder of tiles")
    assert '`embeddings`, float32 ["batch", 48]\n' in text


def _shards(manifest: Manifest) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    return [row for path in sorted(Path(manifest.uri, "shards").iterdir()) for row in pq.read_table(path).to_pylist()]
