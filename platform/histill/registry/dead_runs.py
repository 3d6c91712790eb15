"""Close runs that a killed process left RUNNING on the tracking server."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

OWNER_TAG = "owner"
_SHORT = ("register", "score_model")  # kinds that never take a day
_DAY_MS = 86_400_000


def owner() -> str:
    """A globally unique identity of this process: host, PID namespace, PID and start time."""
    return " ".join((*_host(), str(os.getpid()), _began(os.getpid())))


def close_dead_runs(client: "MlflowClient", experiment_id: str, name: str, kind: str) -> None:
    """Set runs of this name and kind to KILLED if their process is gone.

    Processes on other machines cannot be checked: their runs are closed after a day if their kind never takes that
    long.
    """
    found = client.search_runs(
        [experiment_id], f"attributes.status = 'RUNNING' AND attributes.run_name = '{name}' AND tags.kind = '{kind}'"
    )
    for run in found:
        old = kind in _SHORT and run.info.start_time < time.time() * 1000 - _DAY_MS
        if old or _is_gone(run.data.tags):
            client.set_terminated(run.info.run_id, "KILLED")


def _is_gone(tags: Mapping[str, str]) -> bool:
    """Whether the process that owns a run was on this machine and has ended."""
    parts = tags.get(OWNER_TAG, "").rsplit(" ", 2)
    if len(parts) < 3 or parts[0] != " ".join(_host()):
        return False
    return _began(int(parts[1])) != parts[2]


def _host() -> tuple[str, str]:
    try:
        return socket.gethostname(), os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return socket.gethostname(), "-"


def _began(pid: int) -> str:
    """The start time of process `pid` in kernel ticks; "gone" if there is no such process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _alive_elsewhere(pid)
    state, *rest = status.rpartition(") ")[2].split()
    return "gone" if state in "ZX" else rest[18]


def _alive_elsewhere(pid: int) -> str:
    """As `_began` on systems without /proc, where only the existence of `pid` can be told."""
    if os.path.exists("/proc/self"):
        return "gone"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        pass
    return "there"
