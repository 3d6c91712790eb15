"""Many independent pieces of work on the cluster, a bounded number of them at once."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from histill.cluster.progress import Progress
from histill.cluster.signals import is_interrupted
from histill.errors import HistillError

T = TypeVar("T")
R = TypeVar("R")

WAITING_PER_CPU = 2  # tasks handed to Ray for each CPU: enough that none idles, few enough to stop soon


def map_tasks(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    cpus: float = 1.0,
    gpus: float = 0.0,
    title: str,
    unit: str = "slides",
) -> Iterator[R]:
    """`function(item)` for every item, as Ray tasks of `cpus` CPUs and `gpus` GPUs; results come as they are done.

    Lost workers are replaced and their items tried again by Ray. Leaving the loop early cancels what is under
    way.

    Raises whatever HistillError `function` raised, as it was raised.
    """
    import ray

    def work(item: T) -> R:  # Ray takes functions, and `function` may be a partial one
        return function(item)

    task = ray.remote(work).options(num_cpus=cpus, num_gpus=gpus)
    bound = max(1, int(WAITING_PER_CPU * ray.cluster_resources().get("CPU", 1.0)))
    progress = Progress(title, len(items), unit)
    waiting = iter(items)
    running: list[Any] = []
    done = 0
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
            done += 1
            progress.update(done)
            yield result
    finally:
        progress.close()
        # A process that ends takes its tasks along; Ray 2.60 aborts it when one ends just as it is cancelled.
        for reference in [] if is_interrupted() else running:
            ray.cancel(reference, recursive=True)
