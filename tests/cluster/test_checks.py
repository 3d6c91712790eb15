"""The probe as its user runs it: all green on a whole site, and each red with its fix."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from histill.config.common import Storage
from histill.local.ray_head import RayHead
from histill.local.s3 import Identity, S3Server
from histill.local.tracking import TrackingServer
from histill.storage.control import list_files, write_bytes

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
TILES, RUNS = "s3://tests/checks/tiles", "s3://tests/checks/runs"
CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


@dataclass(frozen=True)
class Store:
    """An S3 server with one file to read, and a reader of it."""

    server: S3Server
    reader: Identity

    def environment_of_reader(self) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": self.reader.access_key, "AWS_SECRET_ACCESS_KEY": self.reader.secret_key}
        return self.server.environment() | keys


@pytest.fixture(scope="module")
def store(s3: S3Server, s3_reader: Identity) -> Store:
    with patch.dict(os.environ, s3.environment()):
        write_bytes(f"{TILES}/manifest.json", b"{}", Storage(endpoint=s3.endpoint))
    return Store(s3, s3_reader)


@dataclass(frozen=True)
class Probed:
    """What the job said."""

    status: int
    table: str
    rows: list[dict[str, str]]

    def states(self, check: str) -> dict[str, str]:
        """State by place."""
        return {row["where"]: row["state"] for row in self.rows if row["check"] == check}

    def red(self) -> dict[str, tuple[str, str]]:
        """What was found and its fix, by check."""
        return {row["check"]: (row["found"], row["fix"]) for row in self.rows if row["state"] == "failed"}


def probe(
    *arguments: str, env: Mapping[str, str], secrets: list[str], python: tuple[str, ...] = (), storage: bool = True
) -> Probed:
    """Run the job; no secret may be in what it says, and no traceback."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_", "MLFLOW_"))}
    where = [f"read={TILES}", f"write={RUNS}"] if storage else []
    with tempfile.TemporaryDirectory() as home:  # a token of Ray in the real one would be checked
        done = subprocess.run(
            # the machine of the tests may be full, and so busy that its clock is read late
            [sys.executable, *python, "jobs/check_cluster.py", *where, "min_free_gb=0", "max_skew_s=60", *arguments],
            cwd=ROOT,
            env=mine | {"HOME": home} | dict(env),
            capture_output=True,
            text=True,
        )
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert not [secret for secret in secrets if secret in said]
    (line,) = done.stdout.splitlines()
    outcome: dict[str, Any] = json.loads(line)
    assert outcome["failed"] == sum(row["state"] == "failed" for row in outcome["checks"])
    assert done.returncode == (1 if outcome["failed"] else 0)
    assert all(row["fix"] for row in outcome["checks"] if row["state"] in ("failed", "warning"))
    return Probed(done.returncode, done.stderr, outcome["checks"])


def test_a_whole_site_is_green(head: RayHead, store: Store, tracking: TrackingServer) -> None:
    assert head.token_path is not None
    env = {**store.server.environment(), **head.environment(), "MLFLOW_TRACKING_URI": tracking.uri}
    secrets = [store.server.secret_key, head.token_path.read_text()]
    probed = probe("nodes=1", "workers.count={min: 2, max: 8}", env=env, secrets=secrets)
    # shared memory and GPUs are the machine's
    others = [row for row in probed.rows if row["check"] not in ("/dev/shm", "GPUs", "free disk")]
    assert {row["state"] for row in others} == {"ok"}, probed.table
    assert [row["check"] for row in others] == [
        *("Ray", "nodes", "token auth", "room", "token file", "versions", "histill", "clock"),
        *("read", "write", "conditional write", "MLflow"),
    ]
    assert probed.status == 0
    (where,) = probed.states("MLflow")
    assert where.startswith("driver, ")
    assert where.endswith(" (head)")
    assert "room for 3 of 8 workers of 1 CPU, and 2 are enough" in probed.table
    with patch.dict(os.environ, store.server.environment()):
        left = list_files(RUNS, Storage(endpoint=store.server.endpoint))
    assert not [each for each in left if not each.endswith("/")]  # SeaweedFS keeps the empty folder for a while


def test_a_wrong_token_and_a_wrong_secret_key(head: RayHead, store: Store) -> None:
    wrong = {"AWS_SECRET_ACCESS_KEY": "hunter2" * 5, "RAY_AUTH_TOKEN": "b" * 64}
    env = {**store.server.environment(), **head.environment(), **wrong}
    probed = probe(env=env, secrets=[store.server.secret_key, *wrong.values()])
    red = probed.red()
    assert set(red) == {"Ray", "read", "write"}
    assert "refuses a missing or wrong token" in red["Ray"][0]
    assert "RAY_AUTH_TOKEN_PATH" in red["Ray"][1]
    for check in ("read", "write"):
        found, fix = red[check]
        assert found.startswith(f"{store.server.endpoint} refused the secret key for s3://tests/checks/")
        assert fix.startswith(CREDENTIALS)


def test_a_reader_cannot_write_and_mlflow_is_away(store: Store) -> None:
    env = {**store.environment_of_reader(), "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    probed = probe(env=env, secrets=[store.reader.secret_key])
    assert probed.table.startswith("RAY_ADDRESS is not set: starting Ray on this machine to check it.\n")
    red = probed.red()
    assert set(red) == {"write", "MLflow"}
    assert list(probed.states("read").values()) == ["ok"]
    (where,) = probed.states("write")
    assert where.startswith("driver, ")  # and the node
    found, fix = red["write"]
    assert found == f"{store.server.endpoint} denied access for {RUNS} [storage-denied]"
    assert fix.startswith(CREDENTIALS)
    found, fix = red["MLflow"]
    assert found == "the tracking server http://127.0.0.1:1 cannot be reached [tracking-unreachable]"
    assert fix.startswith("start it, or correct tracking.uri")


def test_a_node_with_another_histill_and_a_missing_bucket(store: Store, tmp_path: Path) -> None:
    (tmp_path / "histill").mkdir()
    (tmp_path / "histill" / "__init__.py").write_text('"""Of last year."""\n')
    # The driver does not heed PYTHONPATH, and the Ray that it starts does.
    env = {**store.server.environment(), "PYTHONPATH": str(tmp_path)}
    missing = "s3://no-such-bucket/x"
    probed = probe(f"read={missing}", f"write={missing}", env=env, secrets=[], python=("-I",), storage=False)
    red = probed.red()
    assert set(red) == {"histill", "read", "write"}
    assert red["histill"][0] == f"{tmp_path}/histill differs from the driver's histill"
    assert "py_modules" in red["histill"][1]
    for check in ("read", "write"):
        assert red[check][0].startswith(f"the bucket of {missing} does not exist")
        assert list(probed.states(check)) == ["driver"]
    assert list(probed.states("storage").values()) == ["skipped"]
