"""Train a run in this process, without Ray, whose start takes longer than a short run on a workstation.

Checkpoints have the same names and contents as on Ray Train, so that either resumes what the other began.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch
from pyarrow import fs
from torch import nn

from histill.config.common import WorkerGroup
from histill.config.runs import RunConfig
from histill.errors import InputError
from histill.storage.filesystems import storage_errors, writing_errors
from histill.storage.retrying import retrying_filesystem
from histill.storage.scratch import scratch_folder
from histill.storage.uris import join, uri_like
from histill.train.checkpoint import checkpoint_name
from histill.train.newest import METADATA_NAME, find_newest_checkpoint, is_known_to_ray, read_metrics
from histill.train.progress_line import ProgressLine
from histill.train.run_folder import remove_orphans, run_uri
from histill.train.session import OnReport, SavedCheckpoint
from histill.train.snapshot import Snapshot
from histill.train.spec import RunSpec
from histill.train.worker import run_worker


def fit(
    spec: RunSpec, tracker: Any, *, device: torch.device, show: bool, on_report: OnReport | None = None
) -> tuple[str, dict[str, float]]:
    """Train on `device` and return the final model folder and the metrics."""
    config = spec.config
    with closing(ProgressLine(config.name, quiet=not show)) as line:
        session = ProcessSession(config, device, line, on_report)
        with _threads(config.workers):
            run_worker(spec, tracker, session)
    assert session.newest is not None  # a run ends with a checkpoint
    return uri_like(config.runs, session.newest), {key: float(value) for key, value in session.metrics.items()}


def choose_device(workers: WorkerGroup) -> torch.device:
    """The GPU if the workers are to have any, else the CPU. Raises InputError when there is no GPU."""
    if not workers.gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            f"workers.gpus is {workers.gpus:g}, and torch finds no CUDA GPU on this machine; leave it out to train on "
            "the CPU, or give workers.count to train on a cluster.",
            code="gpu-missing",
        )
    return torch.device("cuda")


class ProcessSession:
    """Implements `Session` for the only worker of a run; reports go to the run's folder, progress to `line`."""

    rank, workers = 0, 1

    def __init__(
        self, config: RunConfig, device: torch.device, line: ProgressLine, on_report: OnReport | None = None
    ) -> None:
        self.device = device
        self._line, self._on_report = line, on_report
        self._uri, self._storage = run_uri(config), config.storage
        self._filesystem, runs = retrying_filesystem(config.runs, config.storage)
        self._folder = join(runs, config.name)
        with storage_errors(self._uri, self._storage):
            self.newest = find_newest_checkpoint(self._filesystem, self._folder)  # path of the last that was kept
            self.metrics = {} if self.newest is None else read_metrics(self._filesystem, self.newest)
            if self.newest is None and is_known_to_ray(self._filesystem, self._folder):
                raise InputError(
                    f"no checkpoint in {self._uri} lists its own files, as an earlier version left them, and only Ray "
                    "Train may know one; resume the run with workers.count=1.",
                    code="other-version",
                )

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    @contextmanager
    def open_newest(self) -> Iterator[SavedCheckpoint | None]:
        if self.newest is None:
            yield None
            return
        with scratch_folder() as folder:
            with storage_errors(self._uri, self._storage):
                _copy(self.newest, self._filesystem, folder, fs.LocalFileSystem())
            yield SavedCheckpoint(folder, self.metrics)
        self._tell_of_newest()

    def report(self, metrics: dict[str, float], folder: str | None) -> None:
        assert folder is not None  # there is no other worker
        path = join(self._folder, checkpoint_name(int(metrics["step"])))
        with writing_errors(self._uri, self._storage):
            # the one before the newest, and what was not written to its end, perhaps under this name
            remove_orphans(self._filesystem, self._folder, {self.newest.rpartition("/")[2]} if self.newest else ())
            _copy(folder, fs.LocalFileSystem(), path, self._filesystem)
            with self._filesystem.open_output_stream(f"{path}/{METADATA_NAME}") as file:  # last: now it is complete
                file.write(json.dumps(metrics).encode())
        shutil.rmtree(folder)
        self._line.note_checkpoint()
        self.newest, self.metrics = path, metrics
        self._tell_of_newest()

    def _tell_of_newest(self) -> None:
        if self._on_report is not None and self.newest is not None:
            self._on_report(self.metrics, self.newest)

    def leaving(self) -> bool:
        return False

    def show(self, snapshot: Snapshot) -> None:
        self._line.show(snapshot)

    def tell(self, text: str) -> None:
        self._line.tell(text)


def _copy(source: str, source_filesystem: fs.FileSystem, target: str, target_filesystem: fs.FileSystem) -> None:
    """Copy the files of the folder `source` into `target`, one after another."""
    target_filesystem.create_dir(target)
    fs.copy_files(
        source, target, source_filesystem=source_filesystem, destination_filesystem=target_filesystem, use_threads=False
    )


@contextmanager
def _threads(workers: WorkerGroup) -> Iterator[None]:
    """Let torch use `workers.cpus` threads if that was set, else as many as it does by itself."""
    before = torch.get_num_threads()
    if "cpus" in workers.model_fields_set:
        torch.set_num_threads(max(1, int(workers.cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
