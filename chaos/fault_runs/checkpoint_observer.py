"""Observe a run from outside: read the coverage in every checkpoint while it exists."""

import contextlib
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pyarrow import fs

from histill.local.s3 import REGION, S3Server
from histill.stream.counter_rng import multiset_hash

_POLL_S = 0.3


@dataclass(frozen=True)
class Observation:
    """A checkpoint's coverage, and when it was seen (`time.time()`)."""

    position: dict[str, Any]
    seen_at: float

    def steps(self, per_epoch: int) -> int:
        """Global steps before the checkpoint."""
        return int(self.position["epoch"]) * per_epoch + int(self.position["step"])


@dataclass
class CheckpointObserver:
    """Polls the checkpoints of a run until the block is left, ignoring storage errors."""

    server: S3Server
    folder: str  # bucket/prefix of the run
    seen: dict[str, Observation] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "CheckpointObserver":
        self._thread = threading.Thread(target=self._watch, name="checkpoint-observer", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            self.look()

    def look(self) -> None:
        """Read new checkpoints."""
        with contextlib.suppress(OSError, ValueError):
            files = self.files()
            for found in files.get_file_info(fs.FileSelector(self.folder, allow_not_found=True)):
                if found.base_name.startswith("step-") and found.base_name not in self.seen:
                    with files.open_input_file(f"{found.path}/position.json") as file:
                        self.seen[found.base_name] = Observation(json.loads(file.read()), time.time())

    def files(self) -> fs.S3FileSystem:
        """A client with short timeouts."""
        return fs.S3FileSystem(
            access_key=self.server.access_key,
            secret_key=self.server.secret_key,
            endpoint_override=self.server.endpoint,
            region=REGION,
            connect_timeout=1,
            request_timeout=5,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        )

    def left(self) -> list[str]:
        """The checkpoints that exist now."""
        found = self.files().get_file_info(fs.FileSelector(self.folder, allow_not_found=True))
        return sorted(each.base_name for each in found if each.base_name.startswith("step-"))


def against_plan(
    observations: dict[str, Observation], batches: Sequence[Sequence[Sequence[int]]], finished: bool = True
) -> tuple[int, int, int]:
    """Tiles lost and tiles repeated over all epochs, and the number of checkpoints compared.

    `batches` are the tiles of each global batch of each epoch, as a single reader sees them. A checkpoint's coverage
    must be that of exactly the batches before it, and at an epoch's end that of the whole epoch. For a
    `finished` run, an epoch whose end was not observed counts as lost.
    """
    lost = repeated = 0
    ended = set()
    for observation in observations.values():
        position = observation.position
        epoch, step = position["epoch"], position["step"]
        if epoch < len(batches):
            before = [tile for batch in batches[epoch][:step] for tile in batch]
            counts = _difference(position["tiles"], position["tally"], before)
            lost, repeated = lost + counts[0], repeated + counts[1]
        if step == 0 and epoch:
            ended.add(epoch)
            whole = [tile for batch in batches[epoch - 1] for tile in batch]
            counts = _difference(*position["before"], whole)
            lost, repeated = lost + counts[0], repeated + counts[1]
    unseen = set(range(1, len(batches) + 1)) - ended if finished else set()
    return lost + sum(len(batch) for epoch in unseen for batch in batches[epoch - 1]), repeated, len(observations)


def _difference(tiles: int, fingerprint: int, planned: list[int]) -> tuple[int, int]:
    lost, repeated = max(0, len(planned) - tiles), max(0, tiles - len(planned))
    if not lost and not repeated and fingerprint != multiset_hash(np.array(planned, np.int64)):
        return 1, 1
    return lost, repeated
