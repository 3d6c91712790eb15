"""Find the HistillError inside Ray's exception wrappers."""

from collections.abc import Mapping
from typing import Any

from histill.errors import HistillError


def unwrap_error(error: BaseException | None) -> HistillError | None:
    """The HistillError inside Ray's exception wrappers, if any."""
    seen: set[int] = set()
    queue: list[Any] = [error]
    while queue:
        current = queue.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        cause = getattr(current, "cause", None)  # a RayTaskError, whose class also derives from its cause's
        if isinstance(current, HistillError) and cause is None:
            # Ray Data appends lines of advice to errors of its tasks
            return type(current)(str(current).partition("\n")[0], current.code)
        failures = getattr(current, "worker_failures", None)  # ray.train's WorkerGroupError
        of_controller = getattr(current, "controller_failure", None)  # ray.train's ControllerError
        queue += [cause, of_controller, current.__cause__, current.__context__]
        queue += list(failures.values()) if isinstance(failures, Mapping) else []
    return None
