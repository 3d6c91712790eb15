"""Silence Ray's own output: jobs show their own progress."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from types import ModuleType


def is_verbose() -> bool:
    """Whether the user asked for all output of Ray and the workers (`--verbose`)."""
    return os.environ.get("HISTILL_VERBOSE") == "1"


def import_ray_data() -> ModuleType:
    """Import `ray.data`, with console logging silenced unless `is_verbose()`; its log files keep everything."""
    import ray.data

    # Otherwise a task's error arrives as a UserCodeException without its cause.
    ray.data.DataContext.get_current().raise_original_map_exception = True
    if not is_verbose():
        for handler in logging.getLogger("ray.data").handlers:
            if type(handler).__name__ == "PlainRayHandler":
                handler.setLevel(logging.CRITICAL)
    return ray.data


@contextlib.contextmanager
def silence_ray_start() -> Iterator[None]:
    """Discard stderr unless `is_verbose()`, because Ray's C++ core announces its log level there."""
    if is_verbose():
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
