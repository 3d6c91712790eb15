"""What a trial takes, and how many fit on the cluster at once."""

from collections.abc import Iterable, Mapping

from histill.cluster.capacity import workers_per_node
from histill.config.search_students import SearchConfig
from histill.errors import InputError

DRIVER_CPUS = 0.1  # for a trial's own process, where it only waits for its workers
READING_CPUS = 0.5  # reserved for the tasks that read tiles, without which trials would starve


def trial_resources(config: SearchConfig) -> dict[str, float]:
    """What Tune reserves for a trial's own process, by Ray's names."""
    if not config.workers.in_process:
        return {"CPU": DRIVER_CPUS}
    return {"CPU": config.workers.cpus, "GPU": config.workers.gpus}


def count_fitting_trials(config: SearchConfig, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many trials fit at once on `nodes` (each node's resources, by Ray's names).

    A worker runs on one node, and on one GPU if it takes a fraction of one; it cannot combine the remainders of nodes.
    """
    workers, nodes = config.workers, list(nodes)
    held = sum(workers_per_node(node, workers) for node in nodes)
    free = sum(node.get("CPU", 0.0) for node in nodes) - READING_CPUS
    each = workers.cpus if workers.in_process else workers.most * workers.cpus + DRIVER_CPUS
    return max(0, min(held // workers.most, int(free / each)))


def max_concurrent_trials(config: SearchConfig, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many trials run at once: `concurrent` if set, for clusters that are still to grow; else as many as fit, since
    more would wait for each other. Raises InputError when none fits and `concurrent` is not set."""
    workers, nodes = config.workers, list(nodes)
    fit = config.concurrent or count_fitting_trials(config, nodes)
    if fit < 1:
        cpus, gpus = [node.get("CPU", 0.0) for node in nodes], sum(node.get("GPU", 0.0) for node in nodes)
        own = "" if workers.in_process else f", {DRIVER_CPUS:g} CPUs for itself"
        raise InputError(
            f"one trial takes {workers.most} x {workers.cpus:g} CPUs and {workers.most} x {workers.gpus:g} GPUs "
            f"(workers.count, workers.cpus, workers.gpus){own}, and {READING_CPUS:g} CPUs stay free for reading, but "
            f"the cluster has {sum(cpus):g} CPUs (at most {max(cpus, default=0):g} on a node) and {gpus:g} GPUs; ask "
            "for less per trial, or name `concurrent` trials if nodes are still to come.",
            code="cluster-too-small",
        )
    return min(fit, config.trials)
