"""Prefetch the items of an iterator in a background thread."""

import queue
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """Yield `items`, produced by a thread up to `depth` ahead; its exceptions are re-raised in the consumer."""
    buffer: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def produce() -> None:
        try:
            for item in items:
                if not _put(buffer, ("item", item), stopped):
                    return
            _put(buffer, ("end", None), stopped)
        except BaseException as error:  # re-raised in the consumer, whatever it is
            _put(buffer, ("error", error), stopped)

    thread = threading.Thread(target=produce, name="batches-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = buffer.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()


def _put(buffer: "queue.Queue[tuple[str, Any]]", entry: tuple[str, Any], stopped: threading.Event) -> bool:
    while not stopped.is_set():
        try:
            buffer.put(entry, timeout=0.5)
            return True
        except queue.Full:
            continue
    return False
