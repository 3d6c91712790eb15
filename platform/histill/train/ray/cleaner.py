"""Free what a run holds once its controller is gone.

Separate from trainer.py so that the cleaner's process, which starts beside the workers, need not import torch.
"""

from typing import Any

from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner


class WatchingCleaner(PlacementGroupCleaner):
    """Ray's detached actor that frees a run's resources once its controller is gone, and then ends.

    Ray tells it to watch by a second call. A controller that dies before that call leaves the actor on the cluster for
    good; this one watches from the start.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.start_monitoring()


class CleanerCallback(PlacementGroupCleanerCallback):
    def after_controller_start(self, train_run_context: Any) -> None:
        """Start a `WatchingCleaner`; Ray names its class only in its own module."""
        placement_group_callback.PlacementGroupCleaner = WatchingCleaner  # this process is the controller's own
        super().after_controller_start(train_run_context)
