"""Ray's trainer, except that the job handles signals and no process outlives a job that is killed while starting."""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from histill.train.ray.cleaner import CleanerCallback


class Trainer(TorchTrainer):
    """TorchTrainer without Ray's SIGINT handler, which takes most of a minute to stop the workers and exits with 1.

    Nor does it serve datasets, which takes a process for each run and imports Ray Data in each worker: workers read
    tiles themselves.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        pass

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = [each for each in super()._create_default_callbacks() if type(each) is not DatasetsCallback]
        return [CleanerCallback() if type(each) is PlacementGroupCleanerCallback else each for each in callbacks]
