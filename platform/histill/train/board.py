"""The board: where the first worker writes how far the run is, and where the driver reads it to show one clean line.

Ray forwards workers' output line by line with a prefix and mixes in its own; a progress line needs its own way.
"""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

from histill.cluster.progress import Progress
from histill.train.snapshot import Snapshot


class Board:
    """A Ray actor's state: the newest snapshot, warnings not yet shown, and an error no retry can mend."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._warnings: list[str] = []
        self._fatal: Exception | None = None

    def show(self, snapshot: Snapshot) -> None:
        """Keep the newest snapshot."""
        self._snapshot = snapshot

    def warn(self, text: str) -> None:
        """Queue a line for the user."""
        self._warnings.append(text)

    def fail(self, error: Exception) -> None:
        """Note an error that retrying cannot mend."""
        self._fatal = self._fatal or error

    def fatal(self) -> Exception | None:
        """The noted error."""
        return self._fatal

    def take(self) -> tuple[Snapshot | None, list[str]]:
        """The newest snapshot and the queued lines, which are then forgotten."""
        warnings, self._warnings = self._warnings, []
        return self._snapshot, warnings


def make_board() -> Any:
    """A board as a Ray actor that costs no CPU of the cluster."""
    import ray

    return ray.remote(num_cpus=0)(Board).remote()


class ToBoard(logging.Handler):
    """Sends a worker's histill warnings to the board."""

    def __init__(self, board: Any) -> None:
        super().__init__(logging.WARNING)
        self._board = board

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the formatted message."""
        self._board.warn.remote(self.format(record))


@contextlib.contextmanager
def shown(board: Any, title: str) -> Iterator[None]:
    """Show the board's progress on stderr until the block ends."""
    stop = threading.Event()
    thread = threading.Thread(target=_show, args=(board, title, stop), name="board", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def _show(board: Any, title: str, stop: threading.Event) -> None:
    import ray

    progress: Progress | None = None
    shown_step = -1
    last = False
    while not last:
        last = stop.wait(1.0)
        try:
            snapshot, warnings = ray.get(board.take.remote(), timeout=10)
        except ray.exceptions.RayError:
            return
        for text in warnings:
            print(f"warning: {text}", file=sys.stderr, flush=True)
        if snapshot is None or snapshot.step == shown_step:
            continue
        shown_step = snapshot.step
        per_step = snapshot.tiles // snapshot.step
        if progress is None:
            progress = Progress(title, snapshot.steps * per_step, "tiles")
            progress.start_at(snapshot.tiles)
        progress.update(
            snapshot.tiles,
            f"epoch {snapshot.epoch + 1}  loss {snapshot.loss:.4f}  waiting for data {snapshot.data_wait:.0%}",
            rate=snapshot.tiles_per_s,
        )
    if progress:
        progress.close()
