"""The progress of a run. Separate from loop.py so that the driver can show it without importing torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Snapshot:
    """A run's progress at one moment, for the progress line and the tracker."""

    epoch: int
    step: int  # global
    steps: int  # of the whole run
    tiles: int  # consumed so far by all workers
    all_tiles: int  # of the whole run
    loss: float
    parts: dict[str, float]
    lr: float
    tiles_per_s: float
    data_wait: float  # share of the time spent waiting for data
    validation: str = ""  # the newest one, in words
