"""CPU time of a process and all its children, dead ones included, while they run."""

import ctypes
import os
import threading
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def tree_cpu_s(root: int | None = None) -> float:
    """Seconds of user and system time that the process `root` (this one) and its descendants have used so far.

    A child that has ended and was waited for is in its parent's `cutime` and `cstime`; one that was not is still
    listed. So the sum never falls, whatever ends in between.
    """
    return sum(sum(map(int, fields[11:15])) * _TICK_S for fields in _tree(root or os.getpid()).values())


class TreeMeter:
    """CPU seconds of all processes that this one starts, and that those start, while the block runs.

    For what `tree_cpu_s` cannot count: processes that outlive their parents, which come to this one instead, and
    parents that do not wait for their children. Looks every `every_s` seconds; what a process uses after the last look
    at it is missed.
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
                self._used[pid, fields[19]] = sum(map(int, fields[11:13])) * _TICK_S  # by its start, as ids come again


def _tree(root: int) -> dict[int, list[str]]:
    """The process `root` and its living descendants: what /proc says of each, from its state on."""
    stats: dict[int, list[str]] = {}
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except OSError:  # it ended while we looked
                continue
            fields = text.rpartition(")")[2].split()  # the name before it may hold anything
            stats[int(folder.name)] = fields
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, left = {}, [root]
    while left:
        pid = left.pop()
        if pid in stats:
            found[pid] = stats[pid]
        left += children.get(pid, [])
    return found
