"""What training needs of an experiment tracker; the registry hands out the real one."""

from collections.abc import Mapping
from typing import Protocol


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
