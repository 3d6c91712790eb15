"""Count writes: files that appear in a folder, and writing requests sent to a server."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL_S = 0.002
_WRITING = ("PUT ", "POST ", "PATCH ", "DELETE ")


class Writes:
    """Counts events, and calls back during one of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._at: tuple[int, Callable[[], None]] | None = None

    @property
    def count(self) -> int:
        """Events since the last `begin`."""
        return self._count

    def begin(self, at: int | None = None, then: Callable[[], None] = lambda: None) -> None:
        """Restart counting at 0, and call `then` at event number `at`, which is 1 or more."""
        with self._lock:
            self._count, self._at = 0, None if at is None else (at, then)

    def happened(self) -> None:
        """Count one event."""
        with self._lock:
            self._count += 1
            if self._at is not None and self._count == self._at[0]:
                self._at[1]()

    def heard(self, request: str) -> None:
        """Count a request if it writes."""
        if request.startswith(_WRITING):
            self.happened()


@contextlib.contextmanager
def watched(folder: Path, writes: Writes) -> Iterator[None]:
    """Count each file that appears in `folder` as an event, including part files with their own names."""
    done, known = threading.Event(), set(_files(folder))

    def watch() -> None:
        while not done.wait(_POLL_S):
            for path in _files(folder):
                if path not in known:
                    known.add(path)
                    writes.happened()

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _files(folder: Path) -> Iterator[str]:
    for root, _, names in os.walk(folder):
        for name in names:
            yield os.path.join(root, name)
