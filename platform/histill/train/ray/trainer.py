"""Ray's trainer, which leaves signals to the job and no process behind a job that is killed while it starts."""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner


class Trainer(TorchTrainer):
    """Ray would answer Ctrl-C by an orderly end of the worker group that takes most of a minute, and by status 1."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass

    def _create_default_callbacks(self) -> list[Any]:
        theirs = placement_group_callback.PlacementGroupCleanerCallback
        callbacks = super()._create_default_callbacks()
        return [_CleanerCallback() if type(callback) is theirs else callback for callback in callbacks]


class WatchingCleaner(PlacementGroupCleaner):
    """Ray's detached actor that frees a run's resources once its controller is gone, and then ends.

    Ray tells it to watch by a second call. A controller that dies before that call leaves the actor on the cluster for
    good; this one watches from the start.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.start_monitoring()


class _CleanerCallback(placement_group_callback.PlacementGroupCleanerCallback):
    def after_controller_start(self, train_run_context: Any) -> None:
        """Start a `WatchingCleaner`; Ray names its class only in its own module."""
        placement_group_callback.PlacementGroupCleaner = WatchingCleaner  # this process is the controller's own
        super().after_controller_start(train_run_context)
