"""Show a run to its user: one line of progress on stderr, and beside it what the workers have to say."""

import logging
import sys
from collections.abc import Callable

from histill.cluster.progress import Progress
from histill.train.snapshot import Snapshot

WARNING = "warning: "


class ProgressLine:
    """The progress line of the run `title`."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._progress: Progress | None = None

    @property
    def started(self) -> bool:
        """Whether a step was shown."""
        return self._progress is not None

    def show(self, snapshot: Snapshot) -> None:
        """Redraw the line, or print one if due."""
        if self._progress is None:
            self._progress = Progress(self._title, snapshot.all_tiles, "tiles")
            self._progress.start_at(snapshot.tiles)
        figures = [f"epoch {snapshot.epoch + 1}", f"loss {snapshot.loss:.4f}", snapshot.validation]
        detail = "  ".join([*filter(None, figures), f"waiting for data {snapshot.data_wait:.0%}"])
        self._progress.update(snapshot.tiles, detail, rate=snapshot.tiles_per_s)

    def tell(self, text: str) -> None:
        """Print a line of the run's, or a warning."""
        print(text if text.startswith(WARNING) else f"{self._title}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the redrawn line."""
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
