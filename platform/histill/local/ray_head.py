"""Run a real one-node Ray cluster, with dashboard and job server, in separate processes."""

import json
import os
import secrets
import shutil
import sys
import sysconfig
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histill.local.ports import LOOPBACK, free_ports
from histill.local.processes import run_server, wait_until_ready

_GRACE_S = 3.0  # Ray drains at SIGTERM for half a minute, and whatever ran on it has ended


@dataclass(frozen=True)
class RayHead:
    """A running head: GCS address (host:port), URL of the dashboard and job server, token file."""

    address: str
    dashboard_url: str
    token_path: Path | None

    def environment(self) -> dict[str, str]:
        """The environment variables that make `ray.init()` and `ray job submit` use this head and no other."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard_url,
            **token_environment(self.token_path),
        }


@contextmanager
def ray_head(
    folder: Path,
    cpus: int,
    env: Mapping[str, str] | None = None,
    token_auth: bool = True,
    timeout_s: float = 180.0,
) -> Iterator[RayHead]:
    """Run a head until the block is left, then end it with its workers and jobs.

    `ray stop` is not used because it stops every Ray on the machine.

    Args:
        folder: gets `ray.log`, the token (`ray_token`, readable by the owner only) and, at the end, Ray's own
            logs in `ray_logs/`, replacing those of the previous run.
        cpus: CPUs that Ray offers.
        env: environment variables for Ray and all its workers, such as the credentials of the object store.
        token_auth: refuse clients without the token.
        timeout_s: seconds within which the dashboard must answer.

    Raises:
        HistillError: the head did not start.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    token_path = folder / "ray_token" if token_auth else None
    if token_path is not None:
        write_token(token_path)
    gcs, dashboard, objects, nodes, client, agent, agent_grpc, envs, *metrics = free_ports(11)
    head = RayHead(f"{LOOPBACK}:{gcs}", f"http://{LOOPBACK}:{dashboard}", token_path)
    # Ray puts Unix sockets deep below this folder, and their paths may not exceed 107 bytes.
    temp = Path(tempfile.mkdtemp(prefix="histill-ray-"))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        f"--node-ip-address={LOOPBACK}",
        f"--temp-dir={temp}",
        f"--num-cpus={cpus}",
        f"--port={gcs}",
        "--include-dashboard=true",
        f"--dashboard-host={LOOPBACK}",
        f"--dashboard-port={dashboard}",
        f"--object-manager-port={objects}",
        f"--node-manager-port={nodes}",
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--runtime-env-agent-port={envs}",
        f"--metrics-export-port={metrics[0]}",
        *("--min-worker-port=0", "--max-worker-port=0"),  # 0: chosen by the system
    ]
    log = folder / "ray.log"
    whole_env = {
        **base_environment(),
        "TMPDIR": str(temp),  # killed processes do not clean up
        "DASHBOARD_METRIC_PORT": str(metrics[1]),
        "AUTOSCALER_METRIC_PORT": str(metrics[2]),
        **(env or {}),
        **token_environment(token_path),
    }
    with run_server(command, log=log, env=whole_env, cwd=folder, scratch=[temp], grace_s=_GRACE_S) as process:
        try:
            wait_until_ready(process, "The Ray head", log, lambda: _answers(head), timeout_s)
            yield head
        finally:
            _keep_logs(temp, folder / "ray_logs")


def base_environment() -> dict[str, str]:
    """The environment of every Ray started here: our own programs first, one thread per process, no usage stats."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    scripts = sysconfig.get_path("scripts")
    return {
        **inherited,
        # makes `python` in a submitted job's entrypoint this environment's
        "PATH": os.pathsep.join([scripts, inherited.get("PATH", os.defpath)]),
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def token_environment(token_path: Path | None) -> dict[str, str]:
    """The environment variables that make Ray require the token in the file, or none."""
    # Set in both cases: when it is unset, Ray decides by whether ~/.ray/auth_token exists.
    if token_path is None:
        return {"RAY_AUTH_MODE": "disabled"}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_path)}


def write_token(path: Path) -> None:
    """Create a new token that only the file's owner can read."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def _answers(head: RayHead) -> bool:
    """Whether the job server answers and the node has joined; without a node, jobs would wait."""
    jobs = ask_dashboard(head, "/api/jobs/")
    nodes = ask_dashboard(head, "/nodes?view=summary")
    if jobs is None or nodes is None:
        return False
    states = [node.get("raylet", {}).get("state") for node in nodes["data"]["summary"]]
    return "ALIVE" in states


def ask_dashboard(head: RayHead, path: str) -> Any:
    """The dashboard's JSON response; None while there is none."""
    request = urllib.request.Request(head.dashboard_url + path)
    if head.token_path is not None:
        request.add_header("Authorization", f"Bearer {head.token_path.read_text()}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)
    except (OSError, ValueError):  # not up yet: refused, reset, 500, or invalid JSON
        return None


def _keep_logs(temp: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for logs in temp.glob("session_2*/logs"):
        # a log may be rotated away while it is copied
        with suppress(shutil.Error):
            shutil.copytree(logs, target, symlinks=True, dirs_exist_ok=True)
