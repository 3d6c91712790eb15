"""Encoders as candidates are compared by the probe's balanced accuracy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from histill.artifacts.model_folder import ModelCard, build, save
from histill.config.load import validate
from histill.config.probe import Probe
from histill.config.promote_model import PromoteConfig
from histill.config.score_model import HeldOut
from histill.errors import InputError
from histill.registry import candidate as candidate_module
from histill.registry import comparison
from histill.registry.candidate import examine_candidate, trace_provenance
from histill.registry.comparison import compare_with
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.unit


def make_model(folder: Path, seed: int, **changes: Any) -> str:
    values: dict[str, Any] = {
        "kind": "encoder", "encoder": "csat_tiny", "decoder_channels": (), "classes": (), "mean": (0.5,) * 3,
        "std": (0.2,) * 3, "tile_px": 64, "tile_mpp": 0.5, "size_px": 32, "tiles_digest": "tiles", "train_cases": (),
        "histill": "0", "width": 96,
    }  # fmt: skip
    folder.mkdir()
    card = ModelCard(**values | changes)
    torch.manual_seed(seed)
    save(str(folder), build(card), card)
    return str(folder)


def test_encoders_are_compared_by_their_probes(
    tile_set: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = tile_set(tmp_path / "tiles", tiles=48, cases=8, labels=True)  # six for training
    held_out = HeldOut(tiles=tiles.uri, split="train", probe=Probe(train="test", shots=(1,)))
    keys = {"model": "/m", "registered_name": "encoder", "held_out": {"tiles": tiles.uri}}
    config = validate(PromoteConfig, keys, "test")
    monkeypatch.setattr(candidate_module, "export_compared", lambda *_: ())  # the slowest part, tested by itself
    candidate = examine_candidate(make_model(tmp_path / "candidate", 0), held_out, config)
    assert (candidate.score.main, candidate.score.cases) == ("balanced_accuracy", 6)
    assert trace_provenance(candidate.examiner, candidate.formats, candidate.answers).constant == 0.5
    champions = {
        "1": make_model(tmp_path / "other", 1),
        "2": make_model(tmp_path / "same", 0),
        "3": make_model(tmp_path / "classifier", 0, kind="classification", classes=("stroma", "tumour"), width=None),
    }
    monkeypatch.setattr(comparison, "download_version", lambda name, version, *_: champions[version])
    found = compare_with("1", candidate, held_out, config)
    assert found.figure + found.difference == pytest.approx(candidate.score.figures["balanced_accuracy"])
    assert found.low <= found.difference <= found.high
    same = compare_with("2", candidate, held_out, config)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    with pytest.raises(
        InputError, match=r"^the champion of 'encoder', version 3, is a classifier and the candidate an en"
    ):
        compare_with("3", candidate, held_out, config)
