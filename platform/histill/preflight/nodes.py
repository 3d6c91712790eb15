"""List the nodes of the cluster, and run a probe on all of them at once."""

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
    """A node as Ray knows it."""

    name: str
    node_id: str
    address: str
    session: str  # folder of Ray's session on it
    resources: Mapping[str, float]


def list_alive_nodes() -> list[Node]:
    """The nodes that Ray takes for alive, the head first. Ray must be connected."""
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
    """Send the functions of `module` to nodes whole from now on, not by their names."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(module)


def ask_nodes(
    nodes: Sequence[Node], function: Callable[..., Any], arguments: Callable[[Node], tuple[Any, ...]], timeout_s: float
) -> tuple[dict[str, Any], dict[str, Exception]]:
    """What `function(*arguments(node))` returns on each node, by the node's name, and the errors of those without.

    All are asked at once, and take no CPU from anything. After 5 s it says on stderr whom it still waits for. Whoever
    has not answered after `timeout_s` has an error that says so.
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
            except Exception as error:  # of the task, its worker or its node
                errors[name] = error
        if not ready:
            spent = time.monotonic() - begun
            print(f"waiting for {', '.join(waiting.values())} ({spent:.0f} of {timeout_s:g} s)", file=sys.stderr)
    for name in waiting.values():
        errors[name] = HistillError(
            f"no answer within {timeout_s:g} s; look into Ray's logs on the node, and restart Ray there."
        )
    return {node.name: answers[node.name] for node in nodes if node.name in answers}, errors
