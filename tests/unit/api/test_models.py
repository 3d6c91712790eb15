"""What cannot be predicted or scored is refused in keys of that job, and before torch is loaded where it can be."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

import histill
from histill.artifacts import model_folder
from histill.artifacts.model_folder import ModelCard
from histill.config.ingest_tiles import IngestConfig
from histill.config.keys import dotted_keys, sections
from histill.config.predict_tiles import PredictConfig
from histill.errors import InputError
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.unit

CARD: dict[str, Any] = {
    "kind": "classification", "encoder": "csat_tiny", "decoder_channels": (), "classes": ("benign", "tumor"),
    "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "tile_px": 64, "tile_mpp": 0.5, "size_px": 32,
    "tiles_digest": "0", "train_cases": (), "histill": "0",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier of tiles of 64 px at 0.5 um/px."""
    folder, card = str(tmp_path_factory.mktemp("model")), ModelCard.model_validate(CARD)
    torch.manual_seed(0)
    model_folder.save(folder, model_folder.build(card), card)
    return folder


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("histill.predict.predict", "histill.registry.scoring", "histill.registry.promotion"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails


def write_bare(path: Path, side: int = 256, glass: int = 0, fill: int | None = None) -> str:
    """A slide of tissue right of `glass` columns, or of one gray value, that does not record its resolution."""
    noise = np.random.default_rng(0).normal(0, 8, (side, side, 3))
    pixels = np.clip(np.array((200, 110, 170)) + noise, 0, 255) if fill is None else np.full((side, side, 3), fill)
    pixels[:, :glass] = 244
    tifffile.imwrite(path, pixels.astype(np.uint8), tile=(256, 256), photometric="rgb", metadata=None)
    return str(path)


@pytest.mark.parametrize(
    ("slide", "keys", "remedy"),
    [
        ({}, {}, "set slide_mpp"),
        ({}, {"slide_mpp": 250.0}, "take a slide scanned finer"),
        ({"side": 32}, {"slide_mpp": 0.5}, "leave the slide out"),
        ({"fill": 120}, {"slide_mpp": 0.5}, "set min_tissue=0"),
        ({"side": 70, "glass": 20}, {"slide_mpp": 0.5, "min_tissue": 1.0}, "set a smaller min_tissue"),
    ],
)
def test_a_slide_that_cannot_be_predicted_is_mended_with_keys_of_predictions(
    model: str, tmp_path: Path, slide: dict[str, Any], keys: dict[str, Any], remedy: str
) -> None:
    path = write_bare(tmp_path / "a.tiff", **slide)
    with pytest.raises(InputError) as caught:
        histill.predict_tiles(model=model, slides=[path], output=tmp_path / "out", local=True, **keys)
    said = str(caught.value)
    assert remedy in said
    lacking = {*dotted_keys(IngestConfig)} - {*dotted_keys(PredictConfig)} - {"slides.mpp"}
    names = re.findall(r"\b[a-z]+[._][a-z_]+\b", said.replace(str(tmp_path), ""))
    assert lacking & {*names} == set()
    assert not re.search(r"\bslides\.|\bindex\b|\bmax_unreadable\b", said)
    assert "slides" in sections(dotted_keys(IngestConfig))  # what `slides.` would be of


@pytest.mark.usefixtures("without_torch")
def test_what_cannot_be_predicted_is_refused_before_torch_is_loaded(
    model: str, tmp_path: Path, tile_set: Callable[..., Manifest]
) -> None:
    tile_set(tmp_path / "tiles", tiles=4, tile_px=32)
    for keys, said in (
        ({"slides": [tmp_path / "nope.svs"]}, r"nope\.svs does not exist"),
        ({"tiles": tmp_path / "nowhere"}, "holds no tile set"),
        ({"tiles": tmp_path / "tiles"}, "the model was trained on tiles of 64 px at 0.5 um/px"),
        ({"tiles": tmp_path / "tiles", "model": tmp_path / "misspelt"}, "misspelt is neither a model folder"),
        ({"slides": [write_bare(tmp_path / "a.tiff")], "masks": True}, "masks are made by a segmenter, and .* leave"),
        ({"tiles": tmp_path / "tiles", "slide_mpp": 0.5}, "slide_mpp is for cutting slides; leave it out"),
        ({"tiles": tmp_path / "tiles", "min_tissue": 0.5}, "min_tissue is for cutting slides; leave it out"),
    ):
        with pytest.raises(InputError, match=said):
            histill.predict_tiles(**{"model": model, "output": tmp_path / "out", "local": True, **keys})


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("call", [histill.score_model, histill.promote_model])
def test_what_cannot_be_scored_is_refused_before_torch_is_loaded(
    call: Callable[..., Any], model: str, tmp_path: Path, tile_set: Callable[..., Manifest]
) -> None:
    tile_set(tmp_path, tiles=4, tile_px=32)
    keys = {"registered_name": "nuclei"} if call is histill.promote_model else {}
    for of, said in ((tmp_path / "misspelt", "misspelt is neither a model folder"), (model, "was trained on tiles")):
        with pytest.raises(InputError, match=said):
            call(model=of, held_out={"tiles": tmp_path}, **keys)
