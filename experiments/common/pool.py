"""Many runs in separate processes on this machine, each on one thread."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any


def processes(count: int) -> ProcessPoolExecutor:
    """A pool of `count` processes."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    return ProcessPoolExecutor(count, mp_context=context, initializer=_one_thread)


def done(
    pool: ProcessPoolExecutor, work: Callable[..., tuple[Any, Any]], tasks: Iterable[tuple[object, ...]], title: str
) -> Iterator[tuple[Any, Any]]:
    """Yield results as completed, printing a line with the time left for each."""
    futures, begun = [pool.submit(work, *task) for task in tasks], time.monotonic()
    for number, future in enumerate(as_completed(futures), start=1):
        key, value = future.result()
        spent = time.monotonic() - begun
        left = spent / number * (len(futures) - number) / 60
        figure = f" {value:.3f}" if isinstance(value, float) else ""
        print(f"{title} {number}/{len(futures)}: {getattr(key, 'name', key)}{figure} ({left:.0f} min left)", flush=True)
        yield key, value


def _one_thread() -> None:
    """Limit torch to one thread: runs use the cores by running in parallel."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
