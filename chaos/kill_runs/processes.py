"""What a killed job has left running: descendants of this process, and the job's workers on a cluster that stays."""

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
# What a cluster keeps between jobs: workers that wait for work, and Ray Data's own actors, which all jobs share.
_LASTING = ("ray::IDLE", "ray::_StatsActor", "ray::_AutoscalingCoordinatorActor", "ray::ActorLocationTracker")
_POLL_S = 0.1


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Whoever loses its parent among this process's descendants becomes its child, and so stays known."""
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
    """The processes that were there before any job: servers, and what Ray keeps on their behalf."""

    pids: frozenset[int]
    titles: frozenset[str]

    @staticmethod
    def now() -> "Family":
        """Of this process."""
        found = _descendants(os.getpid())
        return Family(frozenset(found), frozenset(found.values()))

    def strangers(self) -> dict[int, str]:
        """Pid and title of what has come since, but for what the servers do for themselves.

        Below a server only Ray's workers count that are busy with a job.
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
        """Seconds until the last stranger was gone, and those who are still there after `within_s`."""
        begun = time.monotonic()
        while (left := self.strangers()) and time.monotonic() - begun < within_s:
            time.sleep(_POLL_S)
        return time.monotonic() - begun, left


def _descendants(root: int) -> dict[int, str]:
    """Pid and title of every living process below `root`."""
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
