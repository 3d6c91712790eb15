"""How many trials fit on the cluster at once."""

from collections.abc import Iterable, Mapping

from histill.cluster.capacity import workers_per_node
from histill.config.search_students import SearchConfig
from histill.errors import InputError

DRIVER_CPUS = 0.1  # for a trial's own process, which only waits for its training run
READING_CPUS = 0.5  # reserved for the tasks that read tiles, without which trials would starve


def count_fitting_trials(config: SearchConfig, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many trials fit at once on `nodes` (each node's resources, by Ray's names).

    A worker runs on one node, and on one GPU if it takes a fraction of one; it cannot combine the remainders of nodes.
    """
    workers, nodes = config.workers, list(nodes)
    held = sum(workers_per_node(node, workers) for node in nodes)
    free = sum(node.get("CPU", 0.0) for node in nodes) - READING_CPUS
    return max(0, min(held // workers.most, int(free / (workers.most * workers.cpus + DRIVER_CPUS))))


def max_concurrent_trials(config: SearchConfig, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many trials run at once: `concurrent` if set, for clusters that are still to grow; else as many as fit, since
    more would wait for each other. Raises InputError when none fits and `concurrent` is not set."""
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
