"""Show a run to its user: one line of progress on stderr, and beside it what the workers have to say; and metrics."""

import logging
import sys
import time
from collections.abc import Callable

from histill.cluster.metrics import Publisher
from histill.cluster.progress import Progress
from histill.train.snapshot import Snapshot

WARNING = "warning: "


class ProgressLine:
    """The progress line of the run `title`, and its metrics; `quiet`: only those."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self._title = title
        self._quiet = quiet
        self._progress: Progress | None = None
        self._publisher = Publisher()
        self._publisher.set("step_timestamp_seconds", time.time())
        self._publisher.set("checkpoint_timestamp_seconds", time.time())

    @property
    def started(self) -> bool:
        """Whether a step was shown."""
        return self._progress is not None

    def show(self, snapshot: Snapshot) -> None:
        """Redraw the line, or print one if due."""
        self._publish(snapshot)
        if self._quiet:
            return
        if self._progress is None:
            self._progress = Progress(self._title, snapshot.all_tiles, "tiles", publisher=self._publisher)
            self._progress.start_at(snapshot.tiles)
        figures = [f"epoch {snapshot.epoch + 1}", f"loss {snapshot.loss:.4f}", snapshot.validation]
        detail = "  ".join([*filter(None, figures), f"waiting for data {snapshot.data_wait:.0%}"])
        self._progress.update(snapshot.tiles, detail, rate=snapshot.tiles_per_s)

    def _publish(self, snapshot: Snapshot) -> None:
        for name, value in {
            "tiles_per_second": snapshot.tiles_per_s,
            "loss": snapshot.loss,
            "epoch": snapshot.epoch + 1,
            "step": snapshot.step,
            "steps_planned": snapshot.steps,
            "step_timestamp_seconds": time.time(),
        }.items():
            self._publisher.set(name, value)

    def note_checkpoint(self) -> None:
        """A checkpoint was kept just now."""
        self._publisher.set("checkpoint_timestamp_seconds", time.time())

    def tell(self, text: str) -> None:
        """Print a line of the run's, or a warning."""
        if not self._quiet:
            print(text if text.startswith(WARNING) else f"{self._title}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line, and the metrics."""
        self._quiet = True  # for a thread that is late
        self._publisher.close()
        if self._progress is not None:
            self._progress.close()


class WarningHandler(logging.Handler):
    """Passes warnings of histill's loggers to `tell`."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Tell the formatted message."""
        self._tell(f"{WARNING}{self.format(record)}")
