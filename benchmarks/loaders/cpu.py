"""CPU time of a process and all its children, including ended ones, while they run."""

import ctypes
import os
import threading
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def tree_cpu_s(root: int | None = None) -> float:
    """Seconds of user and system time that the process `root` (this one) and its descendants have used so far.

    A child that has ended and was waited for is in its parent's `cutime` and `cstime`; one that was not is still
    listed. The sum therefore never decreases.
    """
    return sum(sum(map(int, fields[11:15])) * _TICK_S for fields in _tree(root or os.getpid()).values())


class TreeMeter:
    """CPU seconds of all direct and indirect children of this process, while the block runs.

    For cases that `tree_cpu_s` cannot count: processes that outlive their parents, which this process adopts, and
    parents that do not wait for their children. Polls every `every_s` seconds; what a process uses after the last poll
    is missed.
    """

    def __init__(self, every_s: float = 0.1) -> None:
        self._every_s = every_s
        self._used: dict[tuple[int, str], float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def cpu_s(self) -> float:
        """Seconds of user and system time."""
        return sum(self._used.values())

    def __enter__(self) -> "TreeMeter":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        for pid, fields in _tree(os.getpid()).items():
            if pid != os.getpid():
                self._used[pid, fields[19]] = sum(map(int, fields[11:13])) * _TICK_S  # by start too: PIDs recur


def _tree(root: int) -> dict[int, list[str]]:
    """The process `root` and its living descendants: the fields of /proc/PID/stat, from the state on."""
    stats: dict[int, list[str]] = {}
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except OSError:  # it ended meanwhile
                continue
            fields = text.rpartition(")")[2].split()  # the name before it may contain anything
            stats[int(folder.name)] = fields
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, left = {}, [root]
    while left:
        pid = left.pop()
        if pid in stats:
            found[pid] = stats[pid]
        left += children.get(pid, [])
    return found
