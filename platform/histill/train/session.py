"""What a worker needs of its surroundings, which differ between Ray Train and a run in its own process."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from histill.train.snapshot import Snapshot

OnReport = Callable[[Mapping[str, float], str], None]
"""Called with the metrics and the path of a checkpoint that was kept."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint of the run."""

    folder: str  # local, for as long as the block of `open_newest` lasts
    metrics: dict[str, float]  # reported with it


class Session(Protocol):
    """One worker's place among the others. Every worker calls the methods equally often, except `show` and `tell`."""

    @property
    def rank(self) -> int:
        """This worker's number; 0 saves checkpoints and shows progress."""
        ...

    @property
    def workers(self) -> int:
        """The world size."""
        ...

    @property
    def device(self) -> torch.device:
        """The device to train on."""
        ...

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` with its gradients averaged over the workers."""
        ...

    def open_newest(self) -> AbstractContextManager[SavedCheckpoint | None]:
        """Hold the run's newest complete checkpoint in a local folder, the same one on every worker; None: a new run.

        At the end of the block it counts as reported.
        """
        ...

    def report(self, metrics: dict[str, float], folder: str | None) -> None:
        """Keep the checkpoint of step `metrics["step"]`, which worker 0 has written to the scratch folder `folder`.

        The folder is removed afterwards; on the other workers it is None.
        """
        ...

    def leaving(self) -> bool:
        """Whether a node will soon be preempted."""
        ...

    def show(self, snapshot: Snapshot) -> None:
        """Update the progress line."""
        ...

    def tell(self, text: str) -> None:
        """Show a line to the user."""
        ...
