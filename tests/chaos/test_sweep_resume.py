"""A sweep whose driver is killed, and that is started again under the same name."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from histill.artifacts.model_folder import FINISHED_NAME, FinishedRun
from histill.config.common import Storage
from histill.local.ray_head import RayHead
from histill.local.tracking import TrackingServer
from histill.storage.filesystems import arrow_filesystem
from histill.storage.records import read_record
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.chaos
TEMPERATURE = "loss.soft_cross_entropy.temperature"

ROOT = Path(__file__).parents[2]
STORAGE = Storage()
TRIALS, EPOCHS, STEPS = 3, 6, 4
WITHIN_S = 300.0


@pytest.fixture(scope="module")
def config(small_run: dict[str, Any], tiles: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        **small_run,
        "name": "interrupted-sweep",
        "data": {**small_run["data"], "tiles": tiles.uri},
        "optimizer": {"epochs": EPOCHS},
        "workers": {"count": 1, "cpus": 0.5},
        "tracking": {**small_run["tracking"], "experiment": "interrupted-sweep"},
        "space": {
            TEMPERATURE: {"choice": [1.0, 2.0, 4.0]},
            "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
        },
        "trials": TRIALS,
        "concurrent": 1,
        "scheduler": "none",
    }


def command(config: dict[str, Any], folder: Path) -> list[str]:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    return [sys.executable, "jobs/search_students.py", "-c", str(path)]


def trial_of(run: Any) -> str:
    """The trial's id, with which its tracked run's name begins."""
    return str(run.info.run_name).partition(" ")[0]


def paths_in(uri: str) -> Iterator[str]:
    """Every folder and file below `uri`, relative to it."""
    from pyarrow.fs import FileSelector

    filesystem, path = arrow_filesystem(uri, STORAGE)
    for info in filesystem.get_file_info(FileSelector(path, recursive=True, allow_not_found=True)):
        yield info.path.removeprefix(f"{path}/")


def test_finished_trials_stay_and_the_running_one_goes_on(
    config: dict[str, Any], tracking: TrackingServer, ray_local: RayHead, tmp_path: Path
) -> None:
    trials = f"{config['runs']}/interrupted-sweep/trials"
    environment = dict(os.environ)  # with the credentials of S3 and the address of the cluster
    first = subprocess.Popen(
        command(config, tmp_path), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + WITHIN_S
        while True:
            seen = list(paths_in(trials))
            done = {path.partition("/")[0] for path in seen if path.endswith(FINISHED_NAME)}
            begun = {path.partition("/")[0] for path in seen if "/step-" in path} - done
            if done and begun:
                break
            assert first.poll() is None
            assert time.monotonic() < deadline, seen
            time.sleep(0.2)
    finally:
        first.kill()
        first.wait()
    client = MlflowClient(tracking.uri, tracking.uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == "interrupted-sweep"]
    ended = {
        trial_of(run): run.info.end_time
        for run in client.search_runs([experiment.experiment_id])
        if trial_of(run) in done
    }

    second = subprocess.run(command(config, tmp_path), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    outcome = json.loads(second.stdout)
    assert outcome["trials"] == TRIALS
    assert "Traceback" not in second.stderr

    runs = {trial_of(run): run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop("interrupted-sweep")
    assert parent.info.run_id == outcome["tracking_run"]
    assert len(runs) == TRIALS  # no trial was begun twice
    assert {name: runs[name].info.end_time for name in done} == ended
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run.info.run_id, "val/dice")
        assert [metric.step for metric in history] == [STEPS * epoch for epoch in range(1, EPOCHS + 1)], name
        assert read_record(FinishedRun, f"{trials}/{name}/{FINISHED_NAME}", STORAGE).metrics["epochs"] == EPOCHS
