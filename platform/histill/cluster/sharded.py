"""Make a folder of shards in parallel, such that the job can be killed at any write and run again.

Each shard is written whole by its worker, which keeps one that an earlier run has written. The header is written last:
it says that all shards are there and how many bytes they have together, so that a repeated job lists them and is done,
and looks into each only where the listing differs. Ingest, response caches and predictions are such folders.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from histill.cluster.progress import track
from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.control import exists, measure_files
from histill.storage.records import Record, write_record
from histill.storage.uris import join

T = TypeVar("T")
R = TypeVar("R")
H = TypeVar("H", bound=Record)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardedFolder:
    """A folder of shards, and the name of its header."""

    uri: str
    header: str
    storage: Storage

    def read_header(self, read: Callable[[], T], *, repair: bool = True) -> T | None:
        """What `read` returns of a header that is there; None when there is none, or none that can be read.

        Raises InputError as `read` does, unless what cannot be read is to be made again (`repair`).
        """
        if not exists(join(self.uri, self.header), self.storage):
            return None
        try:
            return read()
        except InputError as error:
            if not repair:
                raise
            _logger.warning("%s is made again, from what is there of it: %s", self.uri, error)
            return None

    def is_whole(self, shards: Iterable[str], shard_bytes: int | None) -> bool:
        """Whether all `shards` are there, with as many bytes together as the header says."""
        if shard_bytes is not None and self._measure(shards) == shard_bytes:
            return True
        _logger.warning("shards of %s are missing or cut short and are made again", self.uri)
        return False

    def finish(self, header: H, shards: Iterable[str]) -> H:
        """Write the header, whose `shard_bytes` are those of all shards together; nothing is written after it."""
        header = header.model_copy(update={"shard_bytes": self._measure(shards)})
        write_record(header, join(self.uri, self.header), self.storage)
        return header

    def _measure(self, shards: Iterable[str]) -> int | None:
        """The bytes of all shards together; None when one is missing."""
        names = set(shards)
        found = measure_files(self.uri, names, self.storage)
        return sum(found.values()) if len(found) == len(names) else None


def name_by_content(*parts: str) -> str:
    """The name of a folder, 16 hex digits, that changes with each of what decides its content."""
    return hashlib.sha256(":".join(parts).encode()).hexdigest()[:16]


def run_sharded(
    results: Iterable[R], expected: int, *, title: str, unit: str, count: Callable[[R], int] = lambda _: 1
) -> list[R]:
    """The workers' results, one a shard, in any order; shows progress and checks that no unit of work is amiss.

    Args:
        results: begins the workers when it is iterated, as `map_tasks` and `map_actors` do.
        expected: the units of work that the results must come to.
        title, unit: of the progress.
        count: the units of work of one result.

    Raises:
        RuntimeError: a unit is missing or doubled.
    """
    found = list(track(results, expected, title=title, unit=unit, count=count))
    if (done := sum(map(count, found))) != expected:
        raise RuntimeError(f"{title}: {done} {unit} were done of {expected}")
    return found


def check_unchanged(uri: str, expected: str, found: str) -> None:
    """Raises InputError when what a worker finds at `uri` has another digest than what the job began with."""
    if found != expected:
        raise InputError(
            f"{uri} was replaced while this job was reading it; give the same command again, which is for what is "
            "there now."
        )
