"""A score by tasks of the cluster is that of one process."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from histill.artifacts import model_folder
from histill.artifacts.model_folder import ModelCard, build
from histill.config.common import Storage, Tracking, Workers
from histill.config.probe import Probe
from histill.config.score_model import HeldOut, ScoreConfig
from histill.local.ray_head import RayHead
from histill.local.s3 import S3Server
from histill.local.tracking import TrackingServer
from histill.registry.scoring import run_scoring
from histill.storage.uris import join
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.ray_local

STORAGE = Storage()
KINDS: dict[str, dict[str, Any]] = {
    "classification": {"kind": "classification", "decoder_channels": (), "classes": ("stroma", "tumour")},
    "segmentation": {"decoder_channels": (16, 16, 8, 8, 8), "classes": ("background", "nucleus")},
    "encoder": {"kind": "encoder", "decoder_channels": (), "classes": ()},
}


@pytest.fixture(scope="module")
def labeled(ray_local: RayHead, s3: S3Server, tile_set: Callable[..., Manifest]) -> Manifest:
    """48 tiles, of which 32 are scored: eight row groups in four shards."""
    return tile_set(f"s3://{s3.bucket}/scoring/tiles", tiles=48, labels=True)


def check_recorded(client: MlflowClient, experiment: str, score: dict[str, Any]) -> None:
    """The run on the tracking server holds the figures, the page and everything behind them."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    assert (run.info.status, run.data.tags["model_digest"]) == ("FINISHED", score["model_digest"])
    for name, value in score["figures"].items():
        assert run.data.metrics[f"train/{name}"] == pytest.approx(value)
        assert run.data.metrics[f"within_95/{name}_low"] == pytest.approx(score["intervals"][name][0])
    assert run.data.metrics["workload/gmacs"] == score["gmacs"]
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.tags[0].value) == ("tiles", "evaluation")
    assert score["tiles_digest"].startswith(used.dataset.digest)
    assert len(used.dataset.digest) == 36
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"report.html", "score.json"}


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_workers_counts_every_tile_once(
    labeled: Manifest, s3: S3Server, tracking: TrackingServer, tmp_path: Path, kind: str
) -> None:
    card = ModelCard(
        encoder="csat_tiny", mean=(0.5,) * 3, std=(0.2,) * 3, tile_px=64, tile_mpp=0.5, size_px=64,
        tiles_digest="tiles", train_cases=(), histill="0", **KINDS[kind],
    )  # fmt: skip
    torch.manual_seed(0)
    model_folder.save(str(tmp_path), build(card), card)
    model = f"s3://{s3.bucket}/scoring/{kind}"
    model_folder.copy(str(tmp_path), model, STORAGE)

    def score(**keys: Any) -> dict[str, Any]:
        probe = Probe(train="val", shots=(1,)) if kind == "encoder" else None
        held_out = HeldOut(tiles=labeled.uri, split="train", batch_size=5, probe=probe)
        config = ScoreConfig(
            model=model, held_out=held_out, bootstrap_samples=50, robustness_tiles=0, speed=False,
            report=join(f"s3://{s3.bucket}/scoring", f"{kind}.html"), **keys,
        )  # fmt: skip
        return dataclasses.asdict(run_scoring(config))

    where = Tracking(uri=tracking.uri, experiment=f"scoring-{kind}")
    alone = score(tracking=where)
    assert alone["tiles"] == 32
    check_recorded(MlflowClient(tracking.uri, tracking.uri), where.experiment, alone)
    for count in (1, 3):
        shared = score(workers=Workers(count=count, cpus=0.5))
        for figures in ("figures", "intervals", "classes"):
            for name, value in alone[figures].items():
                assert shared[figures][name] == pytest.approx(value, abs=1e-6), (figures, name)
        assert shared["confusion"] == alone["confusion"]
        assert shared["tiles"] == 32
