"""Free a run's cluster resources once its controller is gone.

Separate from trainer.py so that the cleaner's process, which starts alongside the workers, does not import torch.
"""

import time
from typing import Any

import ray
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner

_REMOVED_WITHIN_S = 30.0


class EndingCleaner(PlacementGroupCleaner):
    """Ray's detached actor that frees a run's resources once its controller is gone, and then exits.

    Ray 2.60's own never exits: it raises SystemExit in a background thread, which ends only that thread. It also
    monitors the controller only after a second call, which a controller killed in between never makes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.start_monitoring()

    def _cleanup_placement_group(self, placement_group: Any) -> None:
        """Remove the group and wait until it is gone, since the request dies with a process that is killed."""
        super()._cleanup_placement_group(placement_group)
        until = time.monotonic() + _REMOVED_WITHIN_S
        while placement_group is not None and time.monotonic() < until:
            if self._is_placement_group_removed(placement_group):
                return
            time.sleep(0.2)

    def _exit(self) -> None:
        ray.kill(ray.get_runtime_context().current_actor)


class CleanerCallback(PlacementGroupCleanerCallback):
    def after_controller_start(self, train_run_context: Any) -> None:
        """Start an `EndingCleaner`; Ray has no hook for the class, so replace it in its module."""
        placement_group_callback.PlacementGroupCleaner = EndingCleaner  # the controller has this process to itself
        super().after_controller_start(train_run_context)
