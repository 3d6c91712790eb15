"""Publish a job's progress and events as Ray metrics, which Prometheus scrapes from every node; nothing without Ray.

`name_job` names the job of a process, and a `Publisher` publishes for it. Ray exports a process's metrics every 10 s
(RAY_metrics_report_interval_ms) and at its orderly end. Ray 2.60 drops a gauge 20 s after the last export, and exports
only gauges that were set since, even if their process lives: so a publisher sets them again until it is closed.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from histill.counts import take_counts

_SET_AGAIN_S = 2.0
_JOB_TAGS = ("kind", "run", "trial")


@dataclass(frozen=True)
class Metric:
    """A gauge, or a counter, whose `name` is without prefixes; `tags` are in addition to those of its job."""

    name: str
    description: str
    tags: tuple[str, ...] = ()
    counter: bool = False

    @property
    def all_tags(self) -> tuple[str, ...]:
        """The keys of its tags."""
        return (*_JOB_TAGS, *self.tags)

    @property
    def exported(self) -> str:
        """The name that Prometheus sees."""
        return f"ray_histill_{self.name}{'_total' if self.counter else ''}"


_ALL = (
    # a training run: from the process that started it, which outlives its workers
    Metric("tiles_per_second", "Tiles trained per second by all workers, since the epoch began"),
    Metric("loss", "Training loss, averaged since the epoch began"),
    Metric("epoch", "Epoch in progress, the first is 1"),
    Metric("step", "Steps done"),
    Metric("steps_planned", "Steps of the whole run"),
    Metric("step_timestamp_seconds", "Unix time of the newest step; before the first, of the start"),
    Metric("checkpoint_timestamp_seconds", "Unix time of the newest checkpoint; before the first, of the start"),
    # each of its workers
    Metric("data_wait_ratio", "Share of a worker's time spent waiting for data, since the epoch began", ("rank",)),
    # a sweep
    Metric("trials", "Trials of a sweep by state: running, waiting, done, failed", ("state",)),
    # every job that shows its progress
    Metric("work_done", "Amount of a stage's work that is done", ("stage", "unit")),
    Metric("work_planned", "Amount of a stage's work", ("stage", "unit")),
    Metric("items_done", "Shards, slides or parts that workers have finished", counter=True),
    # every process
    Metric("undecodable_tiles", "Tiles that could not be decoded, each time they were met", ("rank",), counter=True),
    Metric("storage_retries", "Requests to the storage that failed and were tried again", ("rank",), counter=True),
    Metric("cache_hits", "Row groups that were read from the node's cache", ("rank",), counter=True),
    Metric("cache_misses", "Row groups that the node's cache lacked", ("rank",), counter=True),
)
METRICS = {metric.name: metric for metric in _ALL}


@dataclass(frozen=True)
class Job:
    """What a process works on: the kind of job, the name of the run or sweep, or the output, and the trial's id."""

    kind: str
    run: str
    trial: str = ""


_job: ContextVar[Job | None] = ContextVar("job", default=None)


def current_job() -> Job | None:
    """The job named by `name_job`, to be named in other processes."""
    return _job.get()


@contextmanager
def name_job(job: Job | None) -> Iterator[None]:
    """Label the metrics of this block with `job`, unless it is part of a job that was named already."""
    token = _job.set(_job.get() or job)
    try:
        yield
    finally:
        _job.reset(token)


class Publisher:
    """Publishes gauges, and the events counted in this process, for the current job until it is closed.

    Does nothing in a process without Ray, or without a named job. Its thread ends with `close`: one that asks Ray for
    something while Ray is shut down may end the process.
    """

    def __init__(self, rank: str = "") -> None:
        job = current_job()
        self._tags = {"rank": rank} | ({} if job is None else asdict(job))
        self._gauges: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._closed = threading.Event()
        self._lock = threading.Lock()  # else the thread could publish a value that has just been replaced
        self._thread: threading.Thread | None = None
        if job is not None and _has_ray():
            self._thread = threading.Thread(target=self._keep_publishing, name="metrics", daemon=True)
            self._thread.start()

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set the gauge `name`, whose own tags are `tags`."""
        if self._publishes and not self._closed.is_set():
            with self._lock:
                self._gauges[name, tuple(tags.items())] = value
                _metric(name).set(value, self._tags_of(name) | tags)

    @property
    def _publishes(self) -> bool:
        """Whether there is a job to publish for, and still a Ray to publish by."""
        return self._thread is not None and _has_ray()

    def close(self) -> None:
        """Publish the last events, and no longer the gauges, which disappear within half a minute."""
        if not self._closed.is_set():
            self._closed.set()
            if self._thread is not None:
                self._thread.join()
            self.publish_events()

    def _keep_publishing(self) -> None:
        while not self._closed.wait(_SET_AGAIN_S) and self._publishes:
            with self._lock:
                for (name, tags), value in self._gauges.items():
                    _metric(name).set(value, self._tags_of(name) | dict(tags))
            self.publish_events()

    def publish_events(self) -> None:
        """Publish the events counted since the last time."""
        if self._publishes:
            for event, number in take_counts().items():
                _metric(event).inc(number, self._tags_of(event))

    def _tags_of(self, name: str) -> dict[str, str]:
        """This publisher's tags, as far as the metric `name` has them."""
        return {key: self._tags[key] for key in METRICS[name].all_tags if key in self._tags}


def _has_ray() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@cache
def _metric(name: str) -> Any:
    from ray.util.metrics import Counter, Gauge

    metric = METRICS[name]
    return (Counter if metric.counter else Gauge)(f"histill_{name}", metric.description, metric.all_tags)
