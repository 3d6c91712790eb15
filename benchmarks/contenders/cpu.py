"""CPU time of a process and all its children, dead ones included, while they run."""

import os
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def tree_cpu_s(root: int | None = None) -> float:
    """Seconds of user and system time that the process `root` (this one) and its descendants have used so far.

    A child that has ended and was waited for is in its parent's `cutime` and `cstime`; one that was not is still
    listed. So the sum never falls, whatever ends in between.
    """
    used: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except OSError:  # it ended while we looked
                continue
            fields = text.rpartition(")")[2].split()  # the name before it may hold anything; `fields` starts at "state"
            pid = int(folder.name)
            children.setdefault(int(fields[1]), []).append(pid)
            used[pid] = sum(map(int, fields[11:15])) * _TICK_S
    total, left = 0.0, [root or os.getpid()]
    while left:
        pid = left.pop()
        total += used.get(pid, 0.0)
        left += children.get(pid, [])
    return total
