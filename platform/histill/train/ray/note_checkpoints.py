"""Tell the user's process of each checkpoint that was kept."""

from typing import Any

import ray.train


class NoteCheckpoints(ray.train.UserCallback):
    """Notes each checkpoint on the `board` from Ray Train's controller, which knows when it is complete."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called once all workers have reported, and the checkpoint if any is written."""
        if checkpoint is not None:
            self._board.note_checkpoint.remote()
