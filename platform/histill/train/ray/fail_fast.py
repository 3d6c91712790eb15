"""An end to runs whose error no retry can mend."""

from typing import TYPE_CHECKING

import ray.train

from histill.cluster.ray_errors import unwrap_error
from histill.errors import UnavailableError

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.context import TrainRunContext


class FailFast(ray.train.UserCallback):
    """Raises in Ray Train's controller what a worker has said to be wrong with its input or its machine.

    Ray would start all workers anew, as often as `max_failures` allows, to be told the same. A server that is away may
    be back for the next ones.
    """

    def after_exception(self, run_context: "TrainRunContext", worker_exceptions: dict[int, Exception]) -> None:
        """Raises the first HistillError among the workers' errors."""
        for error in worker_exceptions.values():
            known = unwrap_error(error)
            if known is not None and not isinstance(known, UnavailableError):
                raise known
