"""Jobs as a user runs them: submitted to a cluster that asks for a token, and with all that a user gets wrong."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from mlflow import MlflowClient
from PIL import Image

from histill.artifacts import model_folder
from histill.artifacts.model_folder import ModelCard
from histill.config.common import Storage
from histill.local.ports import LOOPBACK, free_ports
from histill.local.ray_head import RayHead, ray_head
from histill.local.s3 import S3Server
from histill.local.tracking import TrackingServer
from histill.tiles.manifest import Manifest, write_manifest

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
JOB = "jobs/pretrain_student.py"
Finished = subprocess.CompletedProcess[str]
PROGRESS = re.compile(r"\S.* +\d+% \d+/\d+ \w+  [\d.]+ \w+/s  ETA ")


@pytest.fixture(scope="module")
def head(s3: S3Server, tracking: TrackingServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A Ray head that asks for a token; what runs on it finds the S3 and the MLflow server."""
    env = {**s3.environment(), "MLFLOW_TRACKING_URI": tracking.uri}
    with ray_head(tmp_path_factory.mktemp("jobs"), cpus=3, env=env, token_auth=True) as head:
        yield head


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


def refusal(finished: Finished, *secrets: str) -> str:
    """The one line that a job says to a user whose input is at fault."""
    said = finished.stdout + finished.stderr
    assert finished.returncode == 2, said
    assert finished.stdout == ""
    assert "Traceback" not in said
    assert not [secret for secret in secrets if secret in said]
    lines = [line for line in finished.stderr.splitlines() if not PROGRESS.match(line)]
    assert len(lines) == 1, said
    assert lines[0].startswith("error: ")
    return lines[0]


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


def test_a_misspelt_key(keys: dict[str, str]) -> None:
    line = refusal(job(*arguments(keys), "optimizer.lr=0.1", env=environment()))
    assert "'optimizer'" in line
    assert "did you mean 'optimizer" in line


def test_a_wrong_s3_password(s3: S3Server, keys: dict[str, str]) -> None:
    wrong = {"AWS_SECRET_ACCESS_KEY": "a-wrong-one"}
    line = refusal(job(*arguments(keys), env=environment(s3.environment(), wrong)), s3.secret_key, "a-wrong-one")
    assert f"{s3.endpoint} refused the secret key for {keys['runs']}" in line


def test_no_s3_password(s3: S3Server, keys: dict[str, str], tmp_path: Path) -> None:
    mine = environment({"AWS_ENDPOINT_URL": s3.endpoint, "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"})
    assert "AWS_ACCESS_KEY_ID" in refusal(job(*arguments(keys), env=mine))


@pytest.mark.parametrize("key", ["runs", "data.tiles"])
def test_a_missing_bucket(s3: S3Server, keys: dict[str, str], key: str) -> None:
    keys[key] = f"s3://no-such-bucket-for-{key.replace('.', '-')}/folder"
    line = refusal(job(*arguments(keys), env=environment(s3.environment())), s3.secret_key)
    assert f"the bucket of {keys[key]}" in line
    assert "does not exist" in line


def test_an_s3_server_that_is_not_there(s3: S3Server, keys: dict[str, str]) -> None:
    nobody = f"http://{LOOPBACK}:{free_ports(1)[0]}"
    keys |= {"storage.endpoint": nobody, "storage.attempts": "1"}
    line = refusal(job(*arguments(keys), env=environment(s3.environment())), s3.secret_key)
    assert f"{nobody} cannot be reached" in line


def test_an_unreachable_tracking_server(s3: S3Server, keys: dict[str, str]) -> None:
    keys["tracking.uri"] = f"http://{LOOPBACK}:{free_ports(1)[0]}"
    line = refusal(job(*arguments(keys), env=environment(s3.environment())), s3.secret_key)
    assert f"the tracking server {keys['tracking.uri']} cannot be reached" in line


def test_an_unreachable_cluster(s3: S3Server, keys: dict[str, str]) -> None:
    nobody = f"{LOOPBACK}:{free_ports(1)[0]}"
    line = refusal(job(*arguments(keys), env=environment(s3.environment(), {"RAY_ADDRESS": nobody})), s3.secret_key)
    assert f"RAY_ADDRESS={nobody}" in line


def test_a_corrupt_jpeg(
    s3: S3Server,
    head: RayHead,
    keys: dict[str, str],
    make_tiles: Callable[[str], Manifest],
    spoil_tile: Callable[..., str],
) -> None:
    spoilt = make_tiles("spoilt")
    tile = spoil_tile(spoilt, 0)
    keys |= {"data.tiles": spoilt.uri, "max_failures": "1000"}  # none is used up by what no retry can mend
    line = refusal(job(*arguments(keys), env=environment(s3.environment(), head.environment())), s3.secret_key)
    assert f"tile {tile} in shard {spoilt.uri}/{spoilt.table['shard'][0]}" in line


def test_a_truncated_shard(
    s3: S3Server,
    head: RayHead,
    keys: dict[str, str],
    make_tiles: Callable[[str], Manifest],
    truncate_shard: Callable[..., str],
) -> None:
    truncated = make_tiles("truncated")
    shard = truncate_shard(truncated, 0)
    keys["data.tiles"] = truncated.uri
    line = refusal(job(*arguments(keys), env=environment(s3.environment(), head.environment())), s3.secret_key)
    assert f"shard {shard} cannot be read" in line


@dataclass(frozen=True)
class Fault:
    """A job, its overrides, and what it must say of them."""

    script: str
    keys: Mapping[str, str]
    said: str


@dataclass(frozen=True)
class Desk:
    """What faults are made of."""

    folder: Path
    tile_set: Callable[..., Manifest]
    mark_mask: Callable[..., str]

    def tiles(self, **changes: Any) -> Manifest:
        return self.tile_set(self.folder / "tiles", tiles=12, **changes)

    def without(self, split: str) -> Manifest:
        """A tile set whose `split` is empty."""
        whole = self.tiles(labels=True)
        rows = whole.table.filter(pa.array([name != split for name in whole.table["split"].to_pylist()]))
        return write_manifest(str(self.folder / "less"), rows, tile_px=64, mpp=0.5, ingest="", storage=Storage())

    def model(self, mpp: float = 0.5) -> str:
        """An untrained segmenter of background and nucleus."""
        card = ModelCard(
            encoder="csat_tiny",
            decoder_channels=(16, 16, 8, 8, 8),
            classes=("background", "nucleus"),
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            tile_px=64,
            tile_mpp=mpp,
            size_px=64,
            tiles_digest="tiles",
            train_cases=(),
            histill="0",
        )
        folder = self.folder / "model"
        folder.mkdir()
        model_folder.save(str(folder), model_folder.build(card), card)
        return str(folder)

    def run(self, tiles: Manifest) -> dict[str, str]:
        """The overrides that every training run has."""
        sizes = {"data.batch_size": "4", "workers.cpus": "0.5", "optimizer.epochs": "1", "max_failures": "0"}
        return {"name": "run", "runs": str(self.folder / "runs"), "data.tiles": tiles.uri} | sizes


def mask_of_another_size(desk: Desk) -> Fault:
    Image.new("RGB", (64, 64)).save(desk.folder / "image.png")
    Image.new("L", (32, 64)).save(desk.folder / "mask.png")
    (desk.folder / "index.csv").write_text("image,mask,case\nimage.png,mask.png,1\n")
    keys = {
        "output": str(desk.folder / "tiles"),
        "images.index": str(desk.folder / "index.csv"),
        "images.mpp": "0.5",
        "images.columns": "{image: image, mask: mask, case: case}",
        "tile_px": "64",
    }
    said = f"the mask {desk.folder}/mask.png is 32 x 64 px and its image {desk.folder}/image.png is 64 x 64; "
    return Fault("jobs/ingest_tiles.py", keys, said)


def label_of_no_class(desk: Desk) -> Fault:
    tiles = desk.tiles(labels=True)
    keys = desk.run(tiles) | {"target": "classification", "classes": "[stroma, fat]"}
    said = f"tile case-4/8 of {tiles.uri} has the label 'tumour' (1 tiles are like it); expected one of stroma, fat: "
    return Fault("jobs/finetune_student.py", keys, said)


def marked(desk: Desk, split: str) -> tuple[Manifest, str]:
    """Tiles of which one has a mask with a 7, and what is to be said of it."""
    tiles = desk.tiles()
    row = int(tiles.rows_of(split)[1])
    name = f"tile {desk.mark_mask(tiles, row, 7)} in shard {tiles.uri}/{tiles.table['shard'][row]}"
    return tiles, f"the mask of {name} holds the value 7 and 0 to 1 was expected (background, nucleus); "


def mask_of_no_class_in_training(desk: Desk) -> Fault:
    """Only the workers see it."""
    tiles, said = marked(desk, "train")
    return Fault("jobs/train_teacher.py", desk.run(tiles) | {"network.encoder": "csat_tiny"}, said)


def mask_of_no_class_in_scoring(desk: Desk) -> Fault:
    tiles, said = marked(desk, "test")
    return Fault("jobs/score_model.py", {"model": desk.model(), "held_out.tiles": tiles.uri}, said)


def teacher_of_another_resolution(desk: Desk) -> Fault:
    teacher = desk.model(mpp=0.25)
    said = f"teacher {teacher} was trained on tiles of 0.25 um/px and the tile set has 0.5; "
    return Fault("jobs/pretrain_student.py", desk.run(desk.tiles()) | {"teacher.model": teacher}, said)


def no_tile_to_learn_from(desk: Desk) -> Fault:
    tiles = desk.without("train")
    keys = desk.run(tiles) | {"target": "classification", "fraction": "0.1"}
    return Fault("jobs/finetune_student.py", keys, f"split 'train' of {tiles.uri} is empty (it has test 2, val 2); ")


def no_tile_to_validate_on(desk: Desk) -> Fault:
    tiles = desk.without("val")
    said = f"split 'val' of {tiles.uri} is empty (it has test 2, train 8); "
    return Fault("jobs/train_teacher.py", desk.run(tiles), said)


def no_tile_held_out(desk: Desk) -> Fault:
    tiles = desk.without("test")
    said = f"split 'test' of {tiles.uri} is empty (it has train 8, val 2); "
    return Fault("jobs/score_model.py", {"model": desk.model(), "held_out.tiles": tiles.uri}, said)


@pytest.mark.parametrize(
    "make",
    [
        mask_of_another_size,
        label_of_no_class,
        mask_of_no_class_in_training,
        mask_of_no_class_in_scoring,
        teacher_of_another_resolution,
        no_tile_to_learn_from,
        no_tile_to_validate_on,
        no_tile_held_out,
    ],
)
def test_bad_input_is_refused_with_the_file_the_value_and_what_was_expected(
    head: RayHead,
    tmp_path: Path,
    tile_set: Callable[..., Manifest],
    mark_mask: Callable[..., str],
    make: Callable[[Desk], Fault],
) -> None:
    fault = make(Desk(tmp_path, tile_set, mark_mask))
    line = refusal(job(*arguments(fault.keys), env=environment(head.environment()), script=fault.script))
    assert fault.said in line
