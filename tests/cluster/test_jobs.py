"""Jobs as a user runs them: submitted to a cluster that asks for a token, and with all that a user gets wrong."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest.mock import patch

import pytest
from mlflow import MlflowClient

from histill.artifacts import model_folder
from histill.config.common import Storage
from histill.local.ports import LOOPBACK, free_ports
from histill.local.ray_head import RayHead
from histill.local.s3 import S3Server
from histill.local.tracking import TrackingServer
from histill.tiles.manifest import Manifest
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
JOB = "jobs/pretrain_student.py"
Finished = subprocess.CompletedProcess[str]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def make_tiles(s3: S3Server, tile_set: Callable[..., Manifest]) -> Iterator[Callable[[str], Manifest]]:
    """Writes a tile set of the given name to S3; the test's own process has the credentials meanwhile."""
    with patch.dict(os.environ, s3.environment()):
        yield lambda name: tile_set(f"s3://{s3.bucket}/jobs/tiles/{name}", tiles=12)


@pytest.fixture(scope="module")
def tiles(make_tiles: Callable[[str], Manifest]) -> Manifest:
    return make_tiles("whole")


@pytest.fixture
def keys(s3: S3Server, tiles: Manifest, request: pytest.FixtureRequest) -> dict[str, str]:
    """The overrides of a run small enough for a test."""
    return {
        "name": re.sub(r"\W+", "-", request.node.name).strip("-"),
        "runs": f"s3://{s3.bucket}/jobs/runs",
        "data.tiles": tiles.uri,
        "data.batch_size": "4",
        "student.encoder": "csat_tiny",
        "student.decoder_channels": "[16, 16, 8, 8, 8]",
        "teacher.classical": "true",
        "optimizer.epochs": "1",
        "workers.cpus": "0.5",
        "max_failures": "0",
    }


def arguments(keys: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in keys.items()]


def environment(*others: Mapping[str, str]) -> dict[str, str]:
    """The environment of a user who has set `others`."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_", "MLFLOW_"))}
    for other in others:
        mine |= other
    return mine


def job(*command: str, env: Mapping[str, str], script: str = JOB) -> Finished:
    return subprocess.run([sys.executable, script, *command], cwd=ROOT, env=env, capture_output=True, text=True)


def submit(*command: str, env: Mapping[str, str]) -> Finished:
    line = ["--working-dir", ".", "--runtime-env-json", '{"py_modules": ["platform/histill"]}', "--", "python", JOB]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
    return subprocess.run([*ray, *line, *command], cwd=ROOT, env=env, capture_output=True, text=True)


def test_a_submitted_job_trains(head: RayHead, s3: S3Server, tracking: TrackingServer, keys: dict[str, str]) -> None:
    address = {"RAY_API_SERVER_ADDRESS": head.dashboard_url}
    stranger = submit(*arguments(keys), env=environment(address, {"RAY_AUTH_MODE": "disabled"}))
    assert stranger.returncode != 0
    assert "token" in (stranger.stdout + stranger.stderr).lower()

    finished = submit(*arguments(keys), env=environment(head.environment()))
    said = finished.stdout + finished.stderr
    assert finished.returncode == 0, said
    assert head.token_path is not None
    assert not [secret for secret in (s3.secret_key, head.token_path.read_text()) if secret in said]
    (line,) = [line for line in said.splitlines() if line.startswith("{")]
    outcome = json.loads(line)
    assert outcome["metrics"]["tiles"] == 8
    _, card, _ = model_folder.load(model_folder.resolve(outcome["run"], Storage()), Storage())
    assert card.encoder == "csat_tiny"
    run = MlflowClient(tracking.uri, tracking.uri).get_run(outcome["tracking_run"])
    assert (run.info.run_name, run.info.status) == (keys["name"], "FINISHED")
    assert run.data.metrics["val/dice"] == pytest.approx(outcome["metrics"]["val_dice"])


def test_help_names_the_keys() -> None:
    finished = job("--help", env=environment())
    assert finished.returncode == 0
    assert finished.stderr == ""
    for key in ("data.tiles", "student.encoder", "optimizer.lr", "storage.endpoint"):
        assert f"  {key} " in finished.stdout


def test_a_misspelt_key(keys: dict[str, str], refused_job: Refused) -> None:
    line = refused_job(JOB, *arguments(keys), "optimizr.lr=0.1", env={})
    assert "'optimizr'" in line
    assert "did you mean 'optimizer" in line


def test_a_wrong_s3_password(s3: S3Server, keys: dict[str, str], refused_job: Refused) -> None:
    wrong = {"AWS_SECRET_ACCESS_KEY": "a-wrong-one"}
    secrets = (s3.secret_key, "a-wrong-one")
    line = refused_job(JOB, *arguments(keys), env=s3.environment() | wrong, secrets=secrets)
    assert f"{s3.endpoint} refused the secret key for {keys['runs']}" in line


def test_no_s3_password(s3: S3Server, keys: dict[str, str], tmp_path: Path, refused_job: Refused) -> None:
    mine = {"AWS_ENDPOINT_URL": s3.endpoint, "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    assert "AWS_ACCESS_KEY_ID" in refused_job(JOB, *arguments(keys), env=mine)


@pytest.mark.parametrize("key", ["runs", "data.tiles"])
def test_a_missing_bucket(s3: S3Server, keys: dict[str, str], key: str, refused_job: Refused) -> None:
    keys[key] = f"s3://no-such-bucket-for-{key.replace('.', '-')}/folder"
    line = refused_job(JOB, *arguments(keys), env=s3.environment(), secrets=[s3.secret_key])
    assert f"the bucket of {keys[key]}" in line
    assert "does not exist" in line


def test_an_s3_server_that_is_not_there(s3: S3Server, keys: dict[str, str], refused_job: Refused) -> None:
    nobody = f"http://{LOOPBACK}:{free_ports(1)[0]}"
    keys |= {"storage.endpoint": nobody, "storage.attempts": "1"}
    line = refused_job(JOB, *arguments(keys), env=s3.environment(), secrets=[s3.secret_key])
    assert f"{nobody} cannot be reached" in line


def test_an_unreachable_tracking_server(s3: S3Server, keys: dict[str, str], refused_job: Refused) -> None:
    keys["tracking.uri"] = f"http://{LOOPBACK}:{free_ports(1)[0]}"
    line = refused_job(JOB, *arguments(keys), env=s3.environment(), secrets=[s3.secret_key])
    assert f"the tracking server {keys['tracking.uri']} cannot be reached" in line


def test_an_unreachable_cluster(s3: S3Server, keys: dict[str, str], one_line: Refused) -> None:
    nobody = f"{LOOPBACK}:{free_ports(1)[0]}"
    finished = job(*arguments(keys), env=environment(s3.environment(), {"RAY_ADDRESS": nobody}))
    assert (finished.returncode, finished.stdout) == (2, "")
    line = one_line(finished.stderr, [s3.secret_key])
    assert f"RAY_ADDRESS={nobody}" in line


def test_a_corrupt_jpeg(
    s3: S3Server,
    tracking: TrackingServer,
    head: RayHead,
    keys: dict[str, str],
    make_tiles: Callable[[str], Manifest],
    spoil_tile: Callable[..., str],
    one_line: Refused,
) -> None:
    spoilt = make_tiles("spoilt")
    tile = spoil_tile(spoilt, 0)
    keys |= {"data.tiles": spoilt.uri, "max_failures": "1000"}  # none is used up by what no retry can mend
    keys |= {"tracking.uri": tracking.uri, "tracking.experiment": keys["name"]}
    finished = job(*arguments(keys), env=environment(s3.environment(), head.environment()))
    assert (finished.returncode, finished.stdout) == (2, ""), finished.stderr
    line = one_line(finished.stderr, [s3.secret_key])
    assert f"tile {tile} in shard {spoilt.uri}/{read_table(spoilt)['shard'][0]}" in line
    client = MlflowClient(tracking.uri, tracking.uri)
    (run,) = client.search_runs([client.get_experiment_by_name(keys["name"]).experiment_id])
    assert run.info.status == "FAILED"
