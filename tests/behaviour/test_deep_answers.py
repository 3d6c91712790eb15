"""Deep supervision through a whole run: its heads learn from the teacher, and the saved model lacks them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig
from histill.models.projection import ProjectedStudent
from histill.models.segmenter import Segmenter
from histill.tiles.manifest import Manifest
from histill.train.build import build_learner, build_streams
from histill.train.loop import Hooks, train
from histill.train.prepare import prepare_run

pytestmark = pytest.mark.behaviour


def pretrained(manifest: Manifest, folder: Path, deep: float) -> list[dict[str, float]]:
    """The parts of the loss at the end of each epoch."""
    config = validate(
        PretrainConfig,
        {
            "name": f"deep-{deep:g}",
            "runs": str(folder),
            "data": {"tiles": manifest.uri, "batch_size": 4},
            "student": {"encoder": "csat_tiny", "decoder_channels": (32, 16, 16, 8, 8)},
            "teacher": {"classical": True},
            "loss": {"deep": {"weight": deep}},
            "optimizer": {"epochs": 10, "lr": 3e-3, "weight_decay": 0.0},
            "workers": {"count": 1},
        },
        "the test",
    )
    prepared = prepare_run(config)
    learner = build_learner(prepared, manifest, torch.device("cpu"))
    parts: list[dict[str, float]] = []
    hooks = Hooks(lambda snapshot: parts.append(dict(snapshot.parts)), lambda _: None)
    train(learner, learner.model, prepared.build_task(), *build_streams(prepared, manifest, 0, 1), config, hooks)
    assert isinstance(learner.model, ProjectedStudent) == (deep > 0)
    assert isinstance(learner.shipped, Segmenter)
    return parts


def test_deep_stages_learn_the_teacher(tmp_path: Path, tile_set: Callable[..., Manifest]) -> None:
    manifest = tile_set(tmp_path / "tiles", tiles=24, tile_px=64)
    parts = pretrained(manifest, tmp_path / "runs", deep=1.0)
    assert parts[-1]["deep"] < 0.8 * parts[0]["deep"]
    assert parts[-1]["soft_cross_entropy"] < parts[0]["soft_cross_entropy"]
    without = pretrained(manifest, tmp_path / "runs", deep=0.0)
    assert "deep" not in without[-1]
