"""Ray's trainer, which leaves signals to the job and no process behind a job that is killed while it starts."""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from histill.train.ray.cleaner import CleanerCallback


class Trainer(TorchTrainer):
    """Ray would answer Ctrl-C by an orderly end of the worker group that takes most of a minute, and by status 1."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [
            CleanerCallback() if type(callback) is PlacementGroupCleanerCallback else callback for callback in callbacks
        ]
