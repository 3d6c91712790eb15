"""Choose who decodes for the workers of a run: they themselves, or the cluster."""

from collections.abc import Iterable, Mapping
from typing import Any

from histill.config.runs import Data


def decodes_in_cluster(data: Data, workers: int, *, smaller: bool, elastic: bool) -> bool:
    """Whether the cluster decodes for the `workers` of a run on Ray; call it once they hold their CPUs.

    Where nothing else is said, it does so only if tiles are `smaller` decoded, since it would only read them else, and
    not for an `elastic` group, whose tasks would take the CPUs that it is to grow into.
    """
    if data.decode != "auto":
        return data.decode == "cluster"
    import ray

    if elastic or not smaller or not ray.is_initialized():
        return False
    nodes = [
        node for node in ray.nodes() if node["Alive"] and node["NodeID"] != ray.get_runtime_context().get_node_id()
    ]
    return count_free_cpus(nodes, ray._private.state.available_resources_per_node(), data.decode_nodes) >= (
        workers * data.decode_threads
    )


def count_free_cpus(
    nodes: Iterable[Mapping[str, Any]], free: Mapping[str, Mapping[str, float]], labels: Mapping[str, str]
) -> float:
    """The free CPUs of those of `nodes` (Ray's descriptions of them) that have these labels."""
    return sum(
        free.get(node["NodeID"], {}).get("CPU", 0.0) for node in nodes if labels.items() <= node["Labels"].items()
    )
