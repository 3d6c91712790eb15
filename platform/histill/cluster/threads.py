"""Run one function over many items on threads of this process, which nothing has to be started for."""

import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextvars import ContextVar, copy_context
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2  # items per thread that are worked on before their results are taken
_stopped: ContextVar[threading.Event | None] = ContextVar("stopped", default=None)


def count_cpus() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def map_threads(
    function: Callable[[T], R], items: Iterable[T], threads: int, *, in_order: bool = True
) -> Generator[R, None, None]:
    """Run `function(item)` for every item on a number of threads, a bounded number of items ahead.

    With one thread it is the caller's. Leaving early, or an error, cancels the items that have not begun and waits for
    the others; a `map_threads` within them stops at its next result.

    Args:
        in_order: yield the results in the order of the items, else as they are completed.
    """
    if threads <= 1:
        yield from map(function, items)
        return
    above, stopped = _stopped.get(), threading.Event()
    waiting = iter(items)
    running: list[Future[R]] = []
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            for item in islice(waiting, AHEAD * threads - len(running)):
                context = copy_context()
                context.run(_stopped.set, stopped)
                running.append(pool.submit(context.run, function, item))
            if not running:
                return
            ready = running[0] if in_order else next(iter(wait(running, return_when=FIRST_COMPLETED).done))
            running.remove(ready)
            result = ready.result()
            if above is not None and above.is_set():
                raise CancelledError
            yield result
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
