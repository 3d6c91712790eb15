"""Drain this Ray node before its machine is reclaimed, so that training checkpoints first.

  python -m histill.cluster.drain 90    # on the node, once the cloud has given notice; the seconds that are left

Ray places nothing new on a draining node, and runs with workers on it write a checkpoint. The command ends when the
node is gone, which is at once if nothing runs there, or when the time is up. The cluster is the one at $RAY_ADDRESS, or
this machine's. `ray start --block` drains its node by itself on SIGTERM, for $RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S;
this command is for preemption notices that arrive in another way.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from histill.errors import HistillError, format_error

_POLL_S = 1.0


def drain_this_node(seconds: int) -> None:
    """Drain this machine's node and wait at most `seconds` until it is gone.

    Raises HistillError when this machine has no node of a cluster, or Ray does not drain it.
    """
    begun = time.monotonic()
    node, gcs_address = _this_node()
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", gcs_address]
    about = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the machine is about to be taken away"]
    deadline = ["--deadline-remaining-seconds", str(seconds)]
    if subprocess.run([*command, "--node-id", node["NodeID"], *about, *deadline], stdout=sys.stderr).returncode:
        raise HistillError(
            f"Ray at {gcs_address} does not drain the node {node['NodeID']}; see its output above.",
            code="node-not-drained",
        )
    while time.monotonic() - begun < seconds and _answers(node["NodeManagerAddress"], node["NodeManagerPort"]):
        time.sleep(_POLL_S)


def _this_node() -> tuple[dict[str, Any], str]:
    """This machine's node as listed by Ray, and the address of its cluster's GCS."""
    import ray

    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise HistillError(
            f"no Ray node was found here ({reason}); set RAY_ADDRESS to the cluster's.", code="node-not-drained"
        ) from None
    try:
        # not the driver's own node, which may be on another machine if hosts share their folders
        here = [node for node in ray.nodes() if node["Alive"] and _is_here(node["NodeManagerAddress"])]
        gcs_address = str(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()
    if len(here) != 1:
        raise HistillError(
            f"Ray at {address} has {len(here)} nodes on this machine; run this where one node is.",
            code="node-not-drained",
        )
    return here[0], gcs_address


def _is_here(address: str) -> bool:
    try:
        socket.create_server((address, 0)).close()
    except OSError:
        return False
    return True


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=_POLL_S).close()
    except OSError:
        return False
    return True


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    match arguments:
        case [seconds] if seconds.isdigit():
            try:
                drain_this_node(int(seconds))
            except HistillError as error:
                print(format_error(error), file=sys.stderr)
                return 1
            return 0
    print((__doc__ or "").strip(), file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
