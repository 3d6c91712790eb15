"""The progress actor ("board"): the first worker writes a run's progress to it, and the driver shows it as one line.

A progress line cannot go through stdout: Ray forwards workers' output with a prefix and mixes its own lines in.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from histill.cluster.progress import format_duration
from histill.train.progress_line import ProgressLine
from histill.train.snapshot import Snapshot

_SAY_SO_AFTER_S = 60.0  # without a step
_ANSWER_S = 10.0  # timeout of one wait for the board; on a loaded machine a reply may take longer


class ProgressActor:
    """The actor's state: the newest snapshot, how many checkpoints were kept, and lines not yet shown."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._checkpoints = 0
        self._lines: list[str] = []

    def show(self, snapshot: Snapshot) -> None:
        """Keep the newest snapshot."""
        self._snapshot = snapshot

    def note_checkpoint(self) -> None:
        """Count a checkpoint."""
        self._checkpoints += 1

    def tell(self, text: str) -> None:
        """Queue a line for the user."""
        self._lines.append(text)

    def take(self) -> tuple[Snapshot | None, int, list[str]]:
        """Return the newest snapshot, the checkpoints so far and the queued lines, and clear the queue."""
        lines, self._lines = self._lines, []
        return self._snapshot, self._checkpoints, lines


def make_progress_actor() -> Any:
    """Start a board as a Ray actor that reserves no CPU. It is pinned to the driver's node, so that it survives the
    loss of any other."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(ProgressActor).remote()


@contextlib.contextmanager
def show_progress(board: Any, title: str, *, quiet: bool = False) -> Iterator[None]:
    """Show the board's progress on stderr, unless `quiet`, and publish it until the block ends."""
    stop = threading.Event()
    with contextlib.closing(ProgressLine(title, quiet=quiet)) as line:
        thread = threading.Thread(target=_show, args=(board, line, stop), name="board", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=10)


def _show(board: Any, line: ProgressLine, stop: threading.Event) -> None:
    import ray

    shown_step, kept = -1, 0
    asked: Any = None
    last = False
    moved = said = time.monotonic()
    while not last:
        last = stop.wait(1.0)
        asked = (
            board.take.remote() if asked is None else asked
        )  # take() clears the queue, so a pending call is awaited rather than repeated
        snapshot: Snapshot | None = None
        try:
            (snapshot, checkpoints, lines), asked = ray.get(asked, timeout=_ANSWER_S), None
            if checkpoints > kept:
                kept = checkpoints
                line.note_checkpoint()
        except ray.exceptions.GetTimeoutError:
            lines = []  # the pending reply is awaited again
        except ray.exceptions.ActorUnavailableError:
            lines, asked = [], None
        except ray.exceptions.RayError as error:
            if not last:
                reason = str(error).strip().partition("\n")[0].rstrip(".")
                line.tell(f"progress is no longer shown; the run continues ({reason})")
            return
        for text in lines:
            line.tell(text)
        now = time.monotonic()
        if snapshot is None or snapshot.step == shown_step:
            if now - said >= _SAY_SO_AFTER_S:
                said = now
                with contextlib.suppress(ray.exceptions.RayError):
                    standing = "no step" if line.started else "workers are starting, no first step yet,"
                    line.tell(f"{standing} for {format_duration(now - moved)}; {_describe_capacity()}")
            continue
        shown_step, moved, said = snapshot.step, now, now
        line.show(snapshot)


def _describe_capacity() -> str:
    """The cluster's free resources, which a run without progress may be waiting for."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    whole, free = ray.cluster_resources(), ray.available_resources()
    parts = [f"{free.get(kind, 0.0):g} of {whole[kind]:g} {kind}s free" for kind in ("CPU", "GPU") if whole.get(kind)]
    return f"the cluster has {len(nodes)} node{'s' * (len(nodes) != 1)} and {' and '.join(parts) or 'no CPU'}"
