"""How many workers fit on each node."""

import math
from collections.abc import Mapping

from histill.config.common import Worker

_EXACT = 1e-9  # so that three workers of 0.3 fit into 0.9


def workers_per_node(node: Mapping[str, float], worker: Worker) -> int:
    """How many such workers fit on an idle node with these Ray resources; a fraction comes from a single GPU."""
    on_cpus = math.floor(node.get("CPU", 0.0) / worker.cpus + _EXACT)
    if not worker.gpus:
        return on_cpus
    gpus = math.floor(node.get("GPU", 0.0))
    of_one = math.floor(1 / worker.gpus + _EXACT)
    return min(on_cpus, gpus * of_one if worker.gpus < 1 else math.floor(gpus / worker.gpus + _EXACT))
