"""Compute a run's figures from the marks of its workers."""

import os
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Mark(NamedTuple):
    """A worker's cumulative times at the end of a step, in seconds."""

    at: float  # clock
    waited: float  # for data, by the training loop's own meter
    reduced: float  # between the hand-over of gradients and the end of their all-reduce
    saved: float  # in checkpoints, on the training thread
    processor: float  # of the worker's process, all threads
    idle: float  # of the machine, summed over its processors


FIGURES = (
    "tiles_per_s", "step_ms", "all_reduce", "of_it_waiting", "data_wait", "checkpoint", "save_ms", "worker_cpus",
    "machine_idle", "gradient_bytes",
)  # fmt: skip


def figures_of(workers: Sequence[Sequence[Mark]], *, warm: int, batch: int, saves: int) -> dict[str, float]:
    """The figures of the steps after the first `warm`, with `batch` tiles per worker and step and `saves` checkpoints.

    Shares are of the time of these steps, means over the workers; that of checkpoints is of the first worker, which
    writes them. In every step the worker that hands over its gradients last does not wait, so the excess of the others'
    all-reduce over the shortest one is `of_it_waiting`.
    """
    marks = np.array(workers)[:, warm - 1 :]  # [workers, steps + 1, fields of a mark]
    steps = np.diff(marks, axis=1)
    whole = steps.sum(1)
    seconds, count = float(whole[0, 0]), steps.shape[1]
    reduced = steps[:, :, Mark._fields.index("reduced")]
    return {
        "tiles_per_s": len(workers) * batch * count / seconds,
        "step_ms": seconds / count * 1e3,
        "all_reduce": float(reduced.mean(0).sum()) / seconds,
        "of_it_waiting": float((reduced.mean(0) - reduced.min(0)).sum()) / seconds,
        "data_wait": float(whole[:, Mark._fields.index("waited")].mean()) / seconds,
        "checkpoint": float(whole[0, Mark._fields.index("saved")]) / seconds,
        "save_ms": float(whole[0, Mark._fields.index("saved")]) / saves * 1e3,
        "worker_cpus": float(whole[:, Mark._fields.index("processor")].mean()) / seconds,
        "machine_idle": float(whole[0, Mark._fields.index("idle")]) / seconds / (os.cpu_count() or 1),
    }


def over_rounds(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure (including the student's `gradient_bytes`), and the minimum and maximum tiles/s."""
    speeds = [each["tiles_per_s"] for each in rounds]
    medians = {name: statistics.median(each[name] for each in rounds) for name in FIGURES}
    return medians | {"least_tiles_per_s": min(speeds), "most_tiles_per_s": max(speeds), "rounds": len(rounds)}
