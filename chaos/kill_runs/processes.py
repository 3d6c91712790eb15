"""Find processes that a killed job left running: descendants of this process, and workers on a permanent cluster."""

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
# Processes that a cluster keeps between jobs: idle workers, and Ray Data's own actors, which all jobs share.
_LASTING = ("ray::IDLE", "ray::_StatsActor", "ray::_AutoscalingCoordinatorActor", "ray::ActorLocationTracker")
_POLL_S = 0.1


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Make this process adopt orphans among its descendants, so that they stay known."""
    _set_subreaper(1)
    try:
        yield
    finally:
        _set_subreaper(0)


def _set_subreaper(on: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, on, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@dataclass(frozen=True)
class Family:
    """The processes that existed before any job: servers, and those that Ray keeps for them."""

    pids: frozenset[int]
    titles: frozenset[str]

    @staticmethod
    def now() -> "Family":
        """The current descendants of this process."""
        found = _descendants(os.getpid())
        return Family(frozenset(found), frozenset(found.values()))

    def strangers(self) -> dict[int, str]:
        """PID and title of processes started since, except the servers' own.

        Below a server, only Ray workers that are busy with a job count.
        """
        mine, theirs = _descendants(os.getpid()), set[int]()
        for pid in self.pids & mine.keys():
            theirs |= _descendants(pid).keys()
        return {
            pid: title
            for pid, title in mine.items()
            if pid not in self.pids
            and (
                pid not in theirs
                or (title.startswith("ray::") and not title.startswith(_LASTING) and title not in self.titles)
            )
        }

    def wait_until_alone(self, within_s: float) -> tuple[float, dict[int, str]]:
        """Seconds until the last stranger was gone, and those that still exist after `within_s`."""
        begun = time.monotonic()
        while (left := self.strangers()) and time.monotonic() - begun < within_s:
            time.sleep(_POLL_S)
        return time.monotonic() - begun, left


def _descendants(root: int) -> dict[int, str]:
    """PID and title of every living process below `root`."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    children.setdefault(int(parent), []).append((int(entry.name), title))
    found: dict[int, str] = {}
    waiting = [root]
    while waiting:
        for pid, title in children.get(waiting.pop(), []):
            found[pid] = title
            waiting.append(pid)
    return found
