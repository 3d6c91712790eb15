"""The tracker interface that training uses; the registry implements it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from histill.train.claim import is_lost


@dataclass(frozen=True)
class DataUse:
    """A tile set that a tracked run reads, and for what."""

    uri: str
    digest: str
    context: Literal["training", "evaluation"]


class Tracker(Protocol):
    """Logs the metrics of one run. Picklable: made on the driver, used by worker 0. Never raises."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log `values` at the global `step`."""
        ...

    def flush(self) -> None:
        """Start sending buffered metrics without waiting."""
        ...

    def close(self) -> None:
        """Send all buffered metrics."""
        ...


@contextmanager
def close_on_error(tracker: Any, folder: str) -> Iterator[None]:
    """Close a tracked run when the block raises: as KILLED after a signal, else as FAILED.

    The run is left open if another job has taken over its `folder`, since that job continues it.
    """
    try:
        yield
    except BaseException as error:
        if tracker and not is_lost(folder):
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
