"""Run one function over many items, on the Ray cluster or in this process.

`map_tasks` is for stateless work: Ray starts a task for each item, and leaving the loop cancels running tasks.
`map_actors` is for work that holds a network: a fixed number of actors load it once and process items in turn. (To run
a probe on every node, whatever its load, see `histill.preflight.nodes`.)
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa

from histill.cluster.metrics import Job, Publisher, current_job, name_job
from histill.cluster.ray_blocks import iterate_blocks
from histill.cluster.ray_logging import import_ray_data
from histill.cluster.signals import is_interrupted
from histill.cluster.threads import count_cpus, map_threads
from histill.config.common import Workers
from histill.counts import count_event
from histill.errors import HistillError

T = TypeVar("T")
R = TypeVar("R")

WAITING_PER_CPU = 2  # tasks submitted per CPU: enough to keep all busy, few enough to stop soon


def map_tasks(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    cpus: float = 1.0,
    gpus: float = 0.0,
    at_once: int | None = None,
    threads: int | None = None,
) -> Iterator[R]:
    """Run `function(item)` for every item in Ray tasks of `cpus` CPUs and `gpus` GPUs; yields results as completed.

    Ray replaces lost workers and retries their items. Leaving the loop early cancels running tasks. Large arrays in the
    results lie in memory of Ray's: they are gone when it is shut down. At most `at_once` tasks run, None: as many as
    the cluster has CPUs for. With `threads` that many of this process do the work, without
    Ray; 1 is the caller's own.

    A HistillError from `function` is raised unwrapped.
    """
    if threads is not None:
        yield from map_threads(function, items, threads, in_order=False)
        return
    import ray

    job = current_job()

    def work(item: T) -> R:  # Ray needs a function, and `function` may be a partial
        with name_job(job), closing(Publisher()):
            return function(item)

    task = ray.remote(work).options(num_cpus=cpus, num_gpus=gpus)
    bound = at_once or max(1, int(WAITING_PER_CPU * ray.cluster_resources().get("CPU", 1.0)))
    waiting = iter(items)
    running: list[Any] = []
    try:
        while True:
            running += [task.remote(item) for item in islice(waiting, bound - len(running))]
            if not running:
                return
            (ready,), running = ray.wait(running, num_returns=1)
            try:
                result = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, HistillError):
                    raise error.cause from None
                raise
            count_event("items_done")
            yield result
    finally:
        # A driver's exit ends its tasks anyway, and Ray 2.60 aborts it if a task ends just as it is cancelled.
        for reference in [] if is_interrupted() else running:
            ray.cancel(reference, recursive=True)


@dataclass(frozen=True)
class Share:
    """What each of several units of work gets of the CPUs."""

    threads: int | None  # of this process that take units; None: Ray's tasks do
    cpus: int  # for each unit
    spread: bool = False  # whether there are more than that, so that a unit may hand pieces of itself to other nodes


def share_cpus(units: int, at_once: int | None, *, here: bool) -> Share:
    """Divide `at_once` CPUs, None: all of the cluster or, with `here`, of this process, among the units.

    A unit never gets more than the smallest node has left if all that is in use, by other jobs or this job's own
    entrypoint, is in use there: a task of more might wait forever. Threads of this process are more than its CPUs when
    that keeps all busy until the last unit is done.
    """
    if here:
        cpus = at_once or count_cpus()
        return Share(min(cpus, units), min(cpus, math.ceil(2 * cpus / units)))
    import ray

    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    smallest = min((cpus for cpus in nodes if cpus), default=1)
    each = (at_once or sum(nodes)) // units
    busy = math.ceil(sum(nodes) - ray.available_resources().get("CPU", 0.0))
    return Share(None, max(1, min(each, smallest - busy)), spread=each > smallest)


def map_actors(
    make: Callable[..., Callable[[str], Any]], arguments: tuple[Any, ...], items: Sequence[str], workers: Workers
) -> Iterator[Any]:
    """Apply the callable that each actor makes by `make(*arguments)` to every item; yields results as completed.

    Results must be JSON-serializable. Ray Data runs at most `workers.count` actors, and retries the items of lost ones;
    with a count of 0 this process does the work, without Ray. Errors of the work are raised unwrapped.
    """
    if workers.in_process:
        yield from map(make(*arguments), items)
        return
    data = import_ray_data()
    dataset = data.from_items(list(items), override_num_blocks=len(items))
    results = dataset.map_batches(
        _Actor,
        fn_constructor_args=(make, arguments, current_job()),
        batch_size=1,
        batch_format="pyarrow",
        # start all actors at once if they fit: a pool that scales up on its own keeps work waiting
        compute=data.ActorPoolStrategy(
            min_size=1,
            max_size=workers.count,
            initial_size=min(workers.count, max(1, len(items))),
            max_tasks_in_flight_per_actor=2,  # one running, one queued; with more, the last items are spread unevenly
        ),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
    )
    for block in iterate_blocks(results):
        for row in block.to_pylist():
            count_event("items_done")
            yield json.loads(row["result"])


class _Actor:
    def __init__(self, make: Callable[..., Callable[[str], Any]], arguments: tuple[Any, ...], job: Job | None) -> None:
        with name_job(job):
            self._publisher = Publisher()  # until the actor ends, without notice
        self._work = make(*arguments)

    def __call__(self, items: pa.Table) -> pa.Table:
        results = [json.dumps(self._work(item)) for item in items["item"].to_pylist()]
        self._publisher.publish_events()
        return pa.table({"result": results})
