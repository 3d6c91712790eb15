"""The leave that a node takes before its machine is taken away: training on it saves first.

  python -m histill.cluster.notice 90                   # on the node, once the cloud has given notice
  python -m histill.cluster.notice 90 -- ray start ...  # runs the node; does the same when it is sent SIGTERM

The node is drained, as Ray calls it: nothing new is placed there, and the runs that have workers on it write a
checkpoint and go elsewhere when the time is up. The command ends when nothing trains there any more, or after the
given seconds. The cluster is the one at $RAY_ADDRESS, or this machine's.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

_POLL_S = 1.0
_SLACK_S = 10.0  # after the deadline, for the workers to be ended
_REASON = "DRAIN_NODE_REASON_PREEMPTION"


def take_leave(seconds: int) -> None:
    """Drain this machine's node, and wait until no worker trains there, for little longer than `seconds`."""
    import ray
    from ray.util.state import list_actors

    address = os.environ.get("RAY_ADDRESS", "auto")
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    node = ray.get_runtime_context().get_node_id()
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "drain-node"),
        *("--address", ray.get_runtime_context().gcs_address),
    ]
    about = ["--reason", _REASON, "--reason-message", "the machine is about to be taken away"]
    subprocess.run(
        [*command, "--node-id", node, *about, "--deadline-remaining-seconds", str(seconds)],
        check=True,
        stdout=sys.stderr,
    )
    deadline = time.monotonic() + seconds + _SLACK_S
    filters = [("node_id", "=", node), ("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
    while time.monotonic() < deadline and list_actors(filters=filters):
        time.sleep(_POLL_S)
    ray.shutdown()


def run(seconds: int, command: Sequence[str]) -> int:
    """Run a node's command; on SIGTERM take leave, then pass the signal on. Returns the command's exit status."""
    # Until there is somebody to pass it on to, the signal waits; the node itself must not be born deaf to it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    process = subprocess.Popen(command, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before))

    def leave(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # in a process of its own: the node is ended, whatever comes of it
        subprocess.run([sys.executable, "-m", "histill.cluster.notice", str(seconds)], check=False)
        process.terminate()

    signal.signal(signal.SIGTERM, leave)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    status = process.wait()
    return 128 - status if status < 0 else status  # as a shell has it


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    match arguments:
        case [seconds] if seconds.isdigit():
            take_leave(int(seconds))
            return 0
        case [seconds, "--", *command] if seconds.isdigit() and command:
            return run(int(seconds), command)
    print((__doc__ or "").strip(), file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
