"""The local servers are real ones: they refuse, they remember, and they end with all they started."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from pyarrow import fs

from histill.config.common import Tracking
from histill.errors import HistillError, InputError
from histill.local import s3 as s3_module
from histill.local import ui
from histill.local.ports import GRPC_OFFSET
from histill.local.ray_head import RayHead, ray_head
from histill.local.s3 import REGION, S3Server, reader, s3_server
from histill.local.tracking import TrackingServer, mlflow_server

pytestmark = pytest.mark.cluster


def client(server: S3Server, access_key: str | None = None, secret_key: str | None = None) -> fs.S3FileSystem:
    return fs.S3FileSystem(
        access_key=access_key or server.access_key,
        secret_key=secret_key or server.secret_key,
        endpoint_override=server.endpoint,
        region=REGION,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )


def put(files: fs.S3FileSystem, path: str, body: bytes) -> None:
    with files.open_output_stream(path) as stream:
        stream.write(body)


def get(files: fs.S3FileSystem, path: str) -> bytes:
    with files.open_input_stream(path) as stream:
        return bytes(stream.read())


def status_of(url: str, data: bytes | None = None, **headers: str) -> int:
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def living(text: str) -> dict[int, int]:
    """Pid and session of the processes whose command line holds `text`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            if command and text in command:
                found[int(entry.name)] = os.getsid(int(entry.name))
        except OSError:
            continue
    return found


def sockets(endpoint: str) -> list[Path]:
    first = int(endpoint.rpartition(":")[2])
    ports = [port + offset for port in range(first, first + 5) for offset in (0, GRPC_OFFSET)]
    return [path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]


def wait_until_gone(text: str) -> None:
    while living(text):  # the timeout of the test ends it
        time.sleep(0.2)


class TestS3:
    def test_the_owner_reads_what_it_wrote(self, s3: S3Server) -> None:
        body = os.urandom(300_000)
        put(client(s3), f"{s3.bucket}/local-servers/object", body)
        assert get(client(s3), f"{s3.bucket}/local-servers/object") == body

    @pytest.mark.parametrize("wrong", [{"secret_key": "wrong"}, {"access_key": "nobody"}])
    def test_wrong_credentials_are_refused(self, s3: S3Server, wrong: dict[str, str]) -> None:
        put(client(s3), f"{s3.bucket}/local-servers/refused", b"body")
        with pytest.raises(OSError, match="ACCESS_DENIED"):
            get(client(s3, **wrong), f"{s3.bucket}/local-servers/refused")

    def test_anonymous_requests_are_refused(self, s3: S3Server) -> None:
        put(client(s3), f"{s3.bucket}/local-servers/anonymous", b"body")
        assert status_of(f"{s3.endpoint}/{s3.bucket}/local-servers/anonymous") == 403

    def test_the_secret_is_not_shown(self, s3: S3Server) -> None:
        assert s3.secret_key not in repr(s3)

    def test_objects_outlive_the_server_and_credentials_do_not(self, tmp_path: Path) -> None:
        body = os.urandom(2_000_000)
        with s3_server(tmp_path, "kept") as first:
            put(client(first), "kept/a/b", body)
            settings = tmp_path / "s3.json"
            assert stat.S_IMODE(settings.stat().st_mode) == 0o600
        only_reads = reader("kept")
        with s3_server(tmp_path, "kept", identities=[only_reads]) as second:
            assert get(client(second), "kept/a/b") == body
            with pytest.raises(OSError, match="ACCESS_DENIED"):
                get(client(second, first.access_key, first.secret_key), "kept/a/b")
            limited = client(second, only_reads.access_key, only_reads.secret_key)
            assert get(limited, "kept/a/b") == body
            with pytest.raises(OSError, match="ACCESS_DENIED"):
                put(limited, "kept/a/c", b"no")
        assert sockets(first.endpoint) + sockets(second.endpoint) == []
        assert living(str(tmp_path)) == {}

    def test_a_server_that_does_not_come_up_is_named_with_its_log(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broken = tmp_path / "weed"
        broken.write_text("#!/bin/sh\necho started\necho 'no space left'\nexit 3\n")
        broken.chmod(0o755)
        monkeypatch.setattr(s3_module, "_weed", lambda: str(broken))
        with (
            pytest.raises(HistillError, match=r"status 3 .*s3\.log ends with 'no space left'"),
            s3_server(tmp_path / "folder", "kept"),
        ):
            pass

    @pytest.mark.timeout(120)
    def test_it_ends_when_its_parent_is_killed(self, tmp_path: Path) -> None:
        program = (
            "import sys, time; from pathlib import Path; from histill.local.s3 import s3_server\n"
            "with s3_server(Path(sys.argv[1]), 'kept') as s: print(s.endpoint, flush=True); time.sleep(600)"
        )
        parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
        assert parent.stdout is not None
        endpoint = parent.stdout.readline().decode().strip()
        assert len(living(str(tmp_path))) == 2
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
        wait_until_gone(str(tmp_path))
        while sockets(endpoint):
            time.sleep(0.2)


class TestTracking:
    def test_other_host_names_are_refused(self, tracking: TrackingServer) -> None:
        url = f"{tracking.uri}/api/2.0/mlflow/experiments/search?max_results=1"
        assert status_of(url) == 200
        assert status_of(url, Host="evil.example.org") == 403

    def test_runs_outlive_the_server_and_the_ui_serves_them_until_a_signal(self, tmp_path: Path) -> None:
        with mlflow_server(tmp_path / ui.FOLDER) as first:
            url = f"{first.uri}/api/2.0/mlflow/experiments/create"
            body = json.dumps({"name": Tracking().experiment}).encode()
            assert status_of(url, body, **{"Content-Type": "application/json"}) == 200
        assert living(str(tmp_path)) == {}
        for number in (signal.SIGINT, signal.SIGTERM):
            process = subprocess.Popen(
                [sys.executable, "-m", "histill", "ui"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
            )
            try:
                assert process.stdout is not None
                said = process.stdout.readline()
                page = next(word for word in said.split() if word.startswith("http://"))
                uri, _, place = page.partition("/#")
                assert int(uri.rpartition(":")[2]) >= ui.PORT
                assert place == "/experiments/1/runs?workflowType=machine_learning"
                assert status_of(f"{uri}/health") == 200
                found = f"{uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name="
                assert (status_of(f"{found}histill"), status_of(f"{found}lost")) == (200, 404)
            finally:
                process.send_signal(number)
                process.communicate()
            assert process.returncode == 0
            assert living(str(tmp_path)) == {}

    def test_the_ui_without_runs_says_how_to_get_them(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="run `histill demo` first"):
            ui.serve(tmp_path / ui.FOLDER)


class TestRayHead:
    @staticmethod
    def run(*command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        # no token of the user's may be found
        env = {**own, "HOME": "/nonexistent", **variables}
        return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=300)

    def test_the_token_is_the_owners_alone(self, head: RayHead) -> None:
        assert head.token_path is not None
        assert stat.S_IMODE(head.token_path.stat().st_mode) == 0o600

    def test_the_job_server_refuses_clients_without_the_token(self, head: RayHead) -> None:
        assert status_of(f"{head.dashboard_url}/api/jobs/") == 401
        assert status_of(f"{head.dashboard_url}/api/jobs/", Authorization="Bearer wrong") == 403

    def test_drivers_without_the_token_are_refused(self, head: RayHead) -> None:
        code = f"import ray; ray.init({head.address!r})"
        few_tries = {"RAY_NUM_REDIS_GET_RETRIES": "1"}  # else Ray tries for 20 s
        assert self.run("-c", code, **head.environment()).returncode == 0
        for wrong in (
            {"RAY_AUTH_MODE": "disabled"},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong" * 8},
        ):
            refused = self.run("-c", code, **few_tries, **wrong)
            assert refused.returncode != 0
            assert "Failed to connect" in refused.stderr

    def test_jobs_without_the_token_are_refused(self, head: RayHead) -> None:
        command = ("-m", "ray.scripts.scripts", "job", "submit", "--address", head.dashboard_url)
        done = self.run(*command, "--", "python", "-c", "print(1)", RAY_AUTH_MODE="disabled")
        assert done.returncode != 0
        assert "token" in (done.stdout + done.stderr).lower()

    def test_a_submitted_job_runs_with_the_heads_environment(self, head: RayHead) -> None:
        code = "import os, ray; print(os.environ['GREETING'] * 2)"
        command = ("-m", "ray.scripts.scripts", "job", "submit", "--", "python", "-c", code)
        done = self.run(*command, **head.environment())
        assert done.returncode == 0, done.stdout + done.stderr
        assert "hellohello" in done.stdout

    def test_no_process_and_no_folder_outlives_it(self, tmp_path: Path) -> None:
        with ray_head(tmp_path, cpus=1) as head:
            leaders = living(f"--port={head.address.rpartition(':')[2]}")
            (session,) = set(leaders.values())
            # a job that leaves a process behind in a session of its own
            code = "import subprocess as s; s.Popen(['sleep', '86399.25'], start_new_session=True)"
            command = ("-m", "ray.scripts.scripts", "job", "submit", "--", "python", "-c", code)
            done = self.run(*command, **head.environment())
            assert done.returncode == 0, done.stdout + done.stderr
            of_head = {pid for pid, its in living("").items() if its == session}
            assert len(of_head) > 5
            (temp,) = {word for pid in of_head for word in _words(pid) if word.startswith("--temp-dir=")}
        assert not {pid for pid, its in living("").items() if its == session}
        assert living("86399.25") == {}
        assert not Path(temp.partition("=")[2]).exists()
        assert (tmp_path / "ray_logs" / "raylet.out").exists()


def _words(pid: int) -> list[str]:
    return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
