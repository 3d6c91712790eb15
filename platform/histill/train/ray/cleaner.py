"""Free what a run holds once its controller is gone.

Separate from trainer.py so that the cleaner's process, which starts beside the workers, need not import torch.
"""

from typing import Any

import ray
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner


class EndingCleaner(PlacementGroupCleaner):
    """Ray's detached actor that frees a run's resources once its controller is gone, and then ends.

    In Ray 2.60 it does not end: it raises SystemExit in a thread of its own, which ends that thread alone. And it looks
    after the controller only when it is told to, by a second call that a controller killed in between never makes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.start_monitoring()

    def _exit(self) -> None:
        ray.kill(ray.get_runtime_context().current_actor)


class CleanerCallback(PlacementGroupCleanerCallback):
    def after_controller_start(self, train_run_context: Any) -> None:
        """Start an `EndingCleaner`; Ray names its class only in its own module."""
        placement_group_callback.PlacementGroupCleaner = EndingCleaner  # this process is the controller's own
        super().after_controller_start(train_run_context)
