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
    """This process, as no other on any machine: host, process namespace, number, and when it began."""
    return " ".join((*_host(), str(os.getpid()), _began(os.getpid())))


def close_dead_runs(client: "MlflowClient", experiment_id: str, name: str, kind: str) -> None:
    """Set the runs of this name and kind to KILLED whose process is gone.

    Of a process on another machine nothing is known: its run is closed after a day where its kind never takes so long.
    """
    found = client.search_runs(
        [experiment_id], f"attributes.status = 'RUNNING' AND attributes.run_name = '{name}' AND tags.kind = '{kind}'"
    )
    for run in found:
        old = kind in _SHORT and run.info.start_time < time.time() * 1000 - _DAY_MS
        if old or _is_gone(run.data.tags):
            client.set_terminated(run.info.run_id, "KILLED")


def _is_gone(tags: Mapping[str, str]) -> bool:
    """Whether the process that a run belongs to was of this machine and has ended."""
    parts = tags.get(OWNER_TAG, "").rsplit(" ", 2)
    if len(parts) < 3 or parts[0] != " ".join(_host()):
        return False
    return _began(int(parts[1])) != parts[2]


def _host() -> tuple[str, str]:
    try:
        return socket.gethostname(), os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        return socket.gethostname(), "-"


def _began(pid: int) -> str:
    """When process `pid` began, in the kernel's ticks; "gone" where there is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _alive_elsewhere(pid)
    state, *rest = status.rpartition(") ")[2].split()
    return "gone" if state in "ZX" else rest[18]


def _alive_elsewhere(pid: int) -> str:
    """As `_began` where there is no /proc, which says no more than that it is there."""
    if os.path.exists("/proc/self"):
        return "gone"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        pass
    return "there"
