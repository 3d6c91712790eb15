"""Run a real MLflow tracking server that keeps its data in one folder."""

import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from histill.local.ports import LOOPBACK, free_ports
from histill.local.processes import run_server, wait_until_ready


@dataclass(frozen=True)
class TrackingServer:
    """A running server; `uri` serves both MLflow's clients and its web pages."""

    uri: str


@contextmanager
def mlflow_server(
    folder: Path,
    port: int | None = None,
    timeout_s: float = 120.0,
    admin_password: str | None = None,
    host: str = LOOPBACK,
    env: Mapping[str, str] | None = None,
) -> Iterator[TrackingServer]:
    """Run a server on the runs, models and artifacts in `folder` until the block is left.

    Args:
        folder: holds `mlflow.db`, `artifacts/` and the log `mlflow.log`, which persist across starts.
        port: its port; None takes a free one.
        timeout_s: seconds within which the server must answer.
        admin_password: require a login, with this password for `admin` (12 characters or more).
        host: address that the server listens on.
        env: environment variables for the server in addition.

    Raises:
        HistillError: the server did not start.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    port = free_ports(1)[0] if port is None else port
    server = TrackingServer(f"http://{host}:{port}")
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"),
        *("--host", host, "--port", str(port), "--workers", "1"),
        *("--allowed-hosts", f"{host}:{port},localhost:{port}"),
    ]
    log = folder / "mlflow.log"
    whole_env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    whole_env |= {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes instead of 10
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        **(env or {}),
    }
    if admin_password is not None:
        command += ["--app-name", "basic-auth"]
        whole_env["MLFLOW_AUTH_ADMIN_PASSWORD"] = admin_password
        whole_env["MLFLOW_FLASK_SERVER_SECRET_KEY"] = secrets.token_hex(32)
    with run_server(command, log=log, env=whole_env, cwd=folder) as process:
        wait_until_ready(process, "The MLflow server", log, lambda: _answers(server), timeout_s)
        yield server


def _answers(server: TrackingServer) -> bool:
    try:
        with urllib.request.urlopen(f"{server.uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
