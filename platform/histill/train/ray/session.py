"""A worker's session on Ray Train."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import nn

from histill.train.checkpoint import checkpoint_name
from histill.train.coverage import sum_over_workers
from histill.train.newest import find_newest_checkpoint, step_of
from histill.train.session import SavedCheckpoint
from histill.train.snapshot import Snapshot


class RaySession:
    """Implements `Session` in a process of Ray Train's; shows progress through the actor `board`."""

    def __init__(self, board: Any) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.workers: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self._board = board

    def wrap(self, model: nn.Module) -> nn.Module:
        # the loop averages batch-norm statistics over the workers; DDP would broadcast those of the first
        options = {"broadcast_buffers": False}
        wrapped: nn.Module = ray.train.torch.prepare_model(model, parallel_strategy_kwargs=options)
        return wrapped

    @contextmanager
    def open_newest(self) -> Iterator[SavedCheckpoint | None]:
        known = ray.train.get_checkpoint()
        checkpoint = _newest(known, self.rank)
        if checkpoint is None:
            yield None
            return
        metrics = checkpoint.get_metadata()
        with checkpoint.as_directory() as folder:
            yield SavedCheckpoint(folder, metrics)
        if checkpoint is not known:  # report it to Ray without another upload
            mode = ray.train.CheckpointUploadMode.NO_UPLOAD
            ray.train.report(metrics, checkpoint if self.rank == 0 else None, checkpoint_upload_mode=mode)

    def report(self, metrics: dict[str, float], folder: str | None) -> None:
        if folder is None:
            ray.train.report(metrics)
            return
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        checkpoint.set_metadata(metrics)
        ray.train.report(
            metrics,
            checkpoint,
            checkpoint_dir_name=checkpoint_name(int(metrics["step"])),
            # during the next steps; then Ray removes the folder
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )

    def leaving(self) -> bool:
        return ray.train.get_preemption_info() is not None

    def show(self, snapshot: Snapshot) -> None:
        self._board.show.remote(snapshot)

    def tell(self, text: str) -> None:
        self._board.tell.remote(text)


def _newest(known: Any, rank: int) -> Any:
    """The run's newest complete checkpoint, the same on every worker; `known` if Ray's own is the newest."""
    place = ray.train.get_context().get_storage()
    filesystem, folder = place.storage_filesystem, place.experiment_fs_path
    found = find_newest_checkpoint(filesystem, folder) if rank == 0 else None
    step = int(sum_over_workers(torch.tensor(0 if found is None else step_of(found))))  # from worker 0
    if step <= (0 if known is None else step_of(known.path)):
        return known
    return ray.train.Checkpoint(f"{folder}/{checkpoint_name(step)}", filesystem)
