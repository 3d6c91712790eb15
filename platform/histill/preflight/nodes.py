"""List the nodes of the cluster, and run a probe on all of them concurrently."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from histill.errors import HistillError

_SAY_EVERY_S = 5.0


@dataclass(frozen=True)
class Node:
    """A node as listed by Ray."""

    name: str
    node_id: str
    address: str
    session: str  # Ray's session folder on the node
    resources: Mapping[str, float]


def list_alive_nodes() -> list[Node]:
    """The nodes that Ray reports alive, head first. Ray must be connected."""
    import ray

    found = [each for each in ray.nodes() if each["Alive"]]
    heads = [each for each in found if "node:__internal_head__" in each["Resources"]]
    ordered = heads + sorted((each for each in found if each not in heads), key=lambda each: each["NodeName"])
    names = [each["NodeName"] for each in ordered]
    nodes = []
    for each, name in zip(ordered, names, strict=True):
        told_apart = name if names.count(name) == 1 else f"{name} {each['NodeID'][:6]}"
        nodes.append(
            Node(
                name=f"{told_apart} (head)" if each in heads else told_apart,
                node_id=each["NodeID"],
                address=each["NodeManagerAddress"],
                session=str(Path(each["ObjectStoreSocketName"]).parents[1]),
                resources=each["Resources"],
            )
        )
    return nodes


def pickle_by_value(module: ModuleType) -> None:
    """Pickle the functions of `module` by value, not by name, from now on."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(module)


def ask_nodes(
    nodes: Sequence[Node], function: Callable[..., Any], arguments: Callable[[Node], tuple[Any, ...]], timeout_s: float
) -> tuple[dict[str, Any], dict[str, Exception]]:
    """Call `function(*arguments(node))` on each node; return results and errors by the node's name.

    All nodes are asked concurrently, without reserving CPUs. After 5 s the nodes still pending are printed on stderr;
    those without an answer after `timeout_s` get an error.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def begin(node: Node) -> Any:
        here = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        return task.options(num_cpus=0, max_retries=0, scheduling_strategy=here).remote(*arguments(node))

    task = ray.remote(function)
    waiting = {begin(node): node.name for node in nodes}
    answers: dict[str, Any] = {}
    errors: dict[str, Exception] = {}
    begun = time.monotonic()
    while waiting and (left := begun + timeout_s - time.monotonic()) > 0:
        ready, _ = ray.wait(list(waiting), timeout=min(_SAY_EVERY_S, left))
        for reference in ready:
            name = waiting.pop(reference)
            try:
                answers[name] = ray.get(reference)
            except Exception as error:  # from the task, its worker or its node
                errors[name] = error
        if not ready:
            spent = time.monotonic() - begun
            print(f"waiting for {', '.join(waiting.values())} ({spent:.0f} of {timeout_s:g} s)", file=sys.stderr)
    for name in waiting.values():
        errors[name] = HistillError(
            f"no answer within {timeout_s:g} s; check Ray's logs on the node, and restart Ray there.",
            code="node-silent",
        )
    return {node.name: answers[node.name] for node in nodes if node.name in answers}, errors
