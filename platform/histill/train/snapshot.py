"""How far a run is. A module of its own, so that who only shows it need not load torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at one moment, for the progress line and the tracker."""

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
