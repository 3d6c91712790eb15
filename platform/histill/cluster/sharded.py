"""Write a folder of shards in parallel, by a job that can be killed at any write and run again.

Each worker writes its shard whole, and keeps one that an earlier run has written. The header is written last: it marks
the folder complete and records the total size of the shards, so that a repeated job only lists the folder, and reads
the shards only if the listing differs. Tile sets, response caches and predictions are such folders.
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
from histill.storage.row_group_index import INDEX_NAME, write_index
from histill.storage.uris import is_remote, join

T = TypeVar("T")
R = TypeVar("R")
H = TypeVar("H", bound=Record)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardedFolder:
    """A folder of shards with a header."""

    uri: str
    header: str
    storage: Storage

    def read_header(self, read: Callable[[], T], *, repair: bool = True) -> T | None:
        """The header as returned by `read`; None if it is missing or, with `repair`, unreadable.

        Without `repair`, raises InputError as `read` does.
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

    def is_whole(self, shards: Iterable[str], shard_bytes: int | None, *, index_as: str | None = None) -> bool:
        """Whether all `shards` exist with the total size recorded in the header.

        With `index_as`, also writes the index that `finish` writes if there is none, as in older folders.
        """
        sizes = self._measure(shards)
        if sizes is not None and sum(sizes.values()) == shard_bytes:
            if index_as is not None and is_remote(self.uri) and not exists(join(self.uri, INDEX_NAME), self.storage):
                write_index(self.uri, sizes, index_as, self.storage)
            return True
        _logger.warning("shards of %s are missing or cut short and are made again", self.uri)
        return False

    def finish(self, header: H, shards: Iterable[str], *, index_as: str | None = None) -> H:
        """Write the header with the shards' total size as `shard_bytes`; nothing is written after it.

        With `index_as`, what the shards belong to, also the index of their row groups.
        """
        sizes = self._measure(shards)
        if index_as is not None and sizes is not None:
            write_index(self.uri, sizes, index_as, self.storage)
        header = header.model_copy(update={"shard_bytes": None if sizes is None else sum(sizes.values())})
        write_record(header, join(self.uri, self.header), self.storage)
        return header

    def _measure(self, shards: Iterable[str]) -> dict[str, int] | None:
        """The sizes of all shards in bytes; None if one is missing."""
        names = set(shards)
        found = measure_files(self.uri, names, self.storage)
        return found if len(found) == len(names) else None


def name_by_content(*parts: str) -> str:
    """A folder name of 16 hex digits that changes with any of `parts`, which determine its content."""
    return hashlib.sha256(":".join(parts).encode()).hexdigest()[:16]


def run_sharded(
    results: Iterable[R], expected: int, *, title: str, unit: str, count: Callable[[R], int] = lambda _: 1
) -> list[R]:
    """Collect the workers' results, one per shard, in any order; shows progress and checks the amount of work.

    Args:
        results: starts the workers when iterated, as `map_tasks` and `map_actors` do.
        expected: total units of work of all results.
        title, unit: labels of the progress.
        count: units of work of one result.

    Raises:
        RuntimeError: units are missing or duplicated.
    """
    found = list(track(results, expected, title=title, unit=unit, count=count))
    if (done := sum(map(count, found))) != expected:
        raise RuntimeError(f"{title}: {done} {unit} were done of {expected}")
    return found


def check_unchanged(uri: str, expected: str, found: str) -> None:
    """Raise InputError if the digest that a worker finds at `uri` is not the one that the job started with."""
    if found != expected:
        raise InputError(
            f"{uri} was replaced while this job was reading it; run the same command again, which uses the new "
            "content.",
            code="input-changed",
        )
