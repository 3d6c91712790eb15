"""How many trials fit on the cluster at once."""

from collections.abc import Iterable, Mapping

from histill.cluster.capacity import workers_per_node
from histill.config.search_students import SearchConfig
from histill.errors import InputError

DRIVER_CPUS = 0.1  # of a trial's own process, which waits for its training run
READING_CPUS = 0.5  # left to the tasks that read tiles, without which trials would wait for data for ever


def count_fitting_trials(config: SearchConfig, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many trials have room at once on `nodes` (resources of each, as Ray names them).

    A worker lies on one node, and on one GPU if it takes a part of one; what a node has left over is of no use to it.
    """
    workers, nodes = config.workers, list(nodes)
    held = sum(workers_per_node(node, workers) for node in nodes)
    free = sum(node.get("CPU", 0.0) for node in nodes) - READING_CPUS
    return max(0, min(held // workers.most, int(free / (workers.most * workers.cpus + DRIVER_CPUS))))


def max_concurrent_trials(config: SearchConfig, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many trials run at once: as many as fit, for more would wait for each other; or `concurrent`, for whose
    trials nodes may be still to come. Raises InputError when not one fits and `concurrent` does not say that."""
    workers, nodes = config.workers, list(nodes)
    fit = config.concurrent or count_fitting_trials(config, nodes)
    if fit < 1:
        cpus, gpus = [node.get("CPU", 0.0) for node in nodes], sum(node.get("GPU", 0.0) for node in nodes)
        raise InputError(
            f"one trial takes {workers.most} x {workers.cpus:g} CPUs and {workers.most} x {workers.gpus:g} GPUs "
            f"(workers.count, workers.cpus, workers.gpus), {DRIVER_CPUS:g} CPUs for itself, and {READING_CPUS:g} CPUs "
            f"stay free for reading, but the cluster has {sum(cpus):g} CPUs (at most {max(cpus, default=0):g} on a "
            f"node) and {gpus:g} GPUs; ask for less per trial, or name `concurrent` trials if nodes are still to come."
        )
    return min(fit, config.trials)
