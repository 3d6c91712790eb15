"""What training needs of an experiment tracker; the registry hands out the real one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from histill.train.claim import is_lost


class Tracker(Protocol):
    """Takes the figures of one run. Picklable: made on the driver, used by the first worker. Never raises."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Note `values` at the global step `step`."""
        ...

    def flush(self) -> None:
        """Begin to send what is held back, and do not wait for it."""
        ...

    def close(self) -> None:
        """Send what is still held back."""
        ...


@contextmanager
def close_on_error(tracker: Any, folder: str) -> Iterator[None]:
    """Close a tracked run if the block does not come to its end: as KILLED by a signal, or FAILED.

    It is left alone once another job has taken over its `folder`, since that goes on with it.
    """
    try:
        yield
    except BaseException as error:
        if tracker and not is_lost(folder):
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
