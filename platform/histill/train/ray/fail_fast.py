"""End runs at once on errors that a retry cannot fix."""

from typing import TYPE_CHECKING

import ray.train

from histill.cluster.ray_errors import unwrap_error
from histill.errors import UnavailableError

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.context import TrainRunContext


class FailFast(ray.train.UserCallback):
    """Re-raises in Ray Train's controller a worker's HistillError about its input or its machine.

    Otherwise Ray would restart all workers up to `max_failures` times, only to meet the same error. UnavailableError is
    left to Ray's retries, since the server may be back by then.
    """

    def after_exception(self, run_context: "TrainRunContext", worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first HistillError among the workers' errors, other than UnavailableError."""
        for error in worker_exceptions.values():
            known = unwrap_error(error)
            if known is not None and not isinstance(known, UnavailableError):
                raise known
