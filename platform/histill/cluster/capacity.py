"""How many workers fit on each node."""

import math
from collections.abc import Mapping

from histill.config.common import Worker

_EXACT = 1e-9  # 0.3 goes into 0.9 three times


def workers_per_node(node: Mapping[str, float], worker: Worker) -> int:
    """How many such workers an idle node (its resources, as Ray names them) holds; parts of a GPU are of one GPU."""
    on_cpus = math.floor(node.get("CPU", 0.0) / worker.cpus + _EXACT)
    if not worker.gpus:
        return on_cpus
    gpus = math.floor(node.get("GPU", 0.0))
    of_one = math.floor(1 / worker.gpus + _EXACT)
    return min(on_cpus, gpus * of_one if worker.gpus < 1 else math.floor(gpus / worker.gpus + _EXACT))
