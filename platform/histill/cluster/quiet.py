"""Ray Data without its own chatter: jobs show their progress in their own way."""

import logging
import os
from types import ModuleType


def ray_data() -> ModuleType:
    """`ray.data`, its console logging silenced unless HISTILL_VERBOSE=1; its log files keep everything."""
    import ray.data

    if os.environ.get("HISTILL_VERBOSE") != "1":
        for handler in logging.getLogger("ray.data").handlers:
            if type(handler).__name__ == "PlainRayHandler":
                handler.setLevel(logging.CRITICAL)
    return ray.data
