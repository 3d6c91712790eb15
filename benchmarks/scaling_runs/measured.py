"""Measured runs on a cluster on this machine: hosts with a fixed CPU share, S3 outside of them, one measuring job."""

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.scaling_runs.driver import MARKED
from benchmarks.scaling_runs.shares import over_rounds
from benchmarks.scaling_runs.workloads import WORKLOADS, Workload, write_tiles
from histill.config.common import Storage
from histill.errors import HistillError
from testbed.hosts import Host, cpu_share
from testbed.site import Site, site

PERIOD_US = 10_000  # of the shares; at Linux's usual 100,000 one throttled node stalls the others at each all-reduce
_JOB = "benchmarks/scaling_runs/driver.py"
_RAYS_OWN = re.compile(r"\S+ \S+\s+(INFO|SUCC|WARNING|ERR)\b")

Figures = dict[str, float]
Measured = dict[str, dict[int, Figures]]  # workload -> number of nodes -> figures


@dataclass(frozen=True)
class Course:
    """The parameters of the measurement."""

    share: float  # CPUs of each node
    nodes: tuple[int, ...]
    rounds: int
    quick: bool
    workloads: tuple[Workload, ...] = WORKLOADS
    beside: int = 0  # nodes more than those that train


def measure(course: Course, pictures: Sequence[np.ndarray], say: Callable[[str], None]) -> Measured:
    """Measure every workload on each number of nodes, in turns. Raises HistillError if hosts cannot be created."""

    def share(host: Host) -> AbstractContextManager[Sequence[str]]:
        if host.name.endswith("-0"):  # the head has no worker
            return nullcontext([])
        return cpu_share(host.name, course.share, PERIOD_US)

    rounds: dict[tuple[str, int], list[Figures]] = defaultdict(list)
    total = len(course.workloads) * len(course.nodes) * course.rounds
    with (
        tempfile.TemporaryDirectory(prefix="scaling-") as folder,
        site(Path(folder) / "site", hosts=1 + max(course.nodes) + course.beside, share=share) as where,
    ):
        with patch.dict("os.environ", where.s3.environment()):
            responses = [
                write_tiles(each, pictures, f"s3://{where.s3.bucket}/{each.folder}", Storage())
                for each in course.workloads
            ]
        begun = time.monotonic()
        for number, line in enumerate(_lines(where, course, responses), start=1):
            name, nodes, round_number = (line.pop(key) for key in (MARKED, "nodes", "round"))
            rounds[name, nodes].append(line)
            spent = time.monotonic() - begun
            say(
                f"{name}, {nodes} node{'s' * (nodes > 1)}, round {round_number + 1}: "
                f"{line['tiles_per_s']:.1f} tiles/s, step {line['step_ms']:.0f} ms, "
                f"all-reduce {line['all_reduce']:.1%} ({line['of_it_waiting']:.1%} of it waiting), "
                f"data wait {line['data_wait']:.1%}, checkpoint {line['checkpoint']:.1%}; "
                f"{number} of {total}, about {spent * (total / number - 1):.0f} s left"
            )
    if sum(map(len, rounds.values())) != total:
        raise HistillError(
            f"{total} measurements were asked for and {sum(map(len, rounds.values()))} came.", code="testbed-failed"
        )
    return {
        each.name: {nodes: over_rounds(rounds[each.name, nodes]) for nodes in course.nodes} for each in course.workloads
    }


def _lines(where: Site, course: Course, responses: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The figures as the job prints them. Raises HistillError with its last lines when it fails."""
    arguments = ["--bucket", where.s3.bucket, "--nodes", *map(str, course.nodes), "--rounds", str(course.rounds)]
    arguments += ["--workloads", *(each.name for each in course.workloads)]
    arguments += ["--responses", *responses, *(["--quick"] if course.quick else [])]
    process = where.submit(_JOB, *arguments, env={"PYTHONPATH": "."})
    said: list[str] = []
    try:
        assert process.stdout is not None
        for text in process.stdout:
            if text.startswith(f'{{"{MARKED}"'):
                yield json.loads(text)
            elif text.strip() and not _RAYS_OWN.match(text):
                said.append(text.rstrip())
        if process.wait():
            raise HistillError(
                "the job on the cluster failed; it said last:\n" + "\n".join(said[-30:]), code="testbed-failed"
            )
    finally:
        process.kill()
        process.wait()
