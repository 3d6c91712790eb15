"""Prefetch the items of a generator in a background thread."""

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_LOOK_S = 0.5  # how often a thread that waits looks whether the program has ended


class Prefetched(Iterator[T], Generic[T]):
    """The items of a generator, produced by a thread up to `depth` ahead; its exceptions are raised in the consumer.

    The thread starts with the first item. It ends after the last one and with `close`; soon after this object is
    dropped, and when the program ends, since a daemon could be killed within foreign code.
    """

    def __init__(self, items: Generator[T, None, None], depth: int = 2) -> None:
        self._buffer: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._free, self._stopped = threading.Semaphore(depth), threading.Event()
        self._thread = threading.Thread(
            target=_produce, args=(items, self._buffer, self._free, self._stopped), name="batches-ahead"
        )

    def __next__(self) -> T:
        if self._stopped.is_set():
            raise StopIteration
        if self._thread.ident is None:
            self._thread.start()
        kind, value = self._buffer.get()
        if kind == "item":
            self._free.release()
            found: T = value
            return found
        self.close()
        raise value if kind == "error" else StopIteration

    def close(self) -> None:
        """End the thread and the generator, and wait for what they are doing."""
        self._stop()
        if self._thread.ident is not None:
            self._thread.join()

    def __del__(self) -> None:
        self._stop()  # without waiting: the collector may run in a thread that the generator waits for

    def _stop(self) -> None:
        self._stopped.set()
        self._free.release()


def _produce(
    items: Generator[T, None, None],
    buffer: "queue.SimpleQueue[tuple[str, Any]]",
    free: threading.Semaphore,
    stopped: threading.Event,
) -> None:
    try:
        with closing(items):
            for item in items:
                while not free.acquire(timeout=_LOOK_S) and threading.main_thread().is_alive():
                    pass
                if stopped.is_set():
                    return
                if not threading.main_thread().is_alive():
                    raise RuntimeError("the program has ended, and with it its streams of tiles")
                buffer.put(("item", item))
        buffer.put(("end", None))
    except BaseException as error:  # raised in the consumer, whatever it is
        buffer.put(("error", error))
