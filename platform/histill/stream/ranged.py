"""Read row groups by one request each, where an index says where they lie."""

import threading
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from histill.config.common import Storage
from histill.counts import count_event
from histill.storage.filesystems import client_key
from histill.storage.row_group_file import read_row_group
from histill.storage.row_group_index import GAP, Part, Place, RowGroupIndex, read_index
from histill.storage.scheme import ReadRange, scheme_of
from histill.storage.uris import join, path_within

_MOST = 8 * 2**20  # bytes of a request for several row groups


@dataclass(frozen=True)
class Wanted:
    """Columns that are wanted of the shards below a folder."""

    folder: str
    belongs_to: str  # what its index must be of: a tile set's digest, or the name of a cache of responses
    columns: tuple[str, ...]
    checked: bool = False  # verify the checksums of pages


class RangedRowGroups:
    """Row groups of folders of shards that have an index (`row_group_index`). Safe across threads."""

    def __init__(self) -> None:
        self._indexes: dict[tuple[str, str], RowGroupIndex | None] = {}
        self._readers: dict[Hashable, ReadRange | None] = {}
        self._lock = threading.Lock()

    def read(self, wanted: Wanted, shard: str, row_group: int, storage: Storage) -> pa.Table | None:
        """Some columns of a row group; None where there is no index, or whenever anything is not as it says.

        The shard must then be read by its footer, which also tells what is wrong.
        """
        return self.read_together(wanted, shard, [row_group], storage).get(row_group)

    def read_together(
        self, wanted: Wanted, shard: str, row_groups: Sequence[int], storage: Storage
    ) -> dict[int, pa.Table]:
        """`read` for several row groups of a shard, by one request for all that are neighbors; {} for None."""
        places = {number: self._find(wanted, shard, number, storage) for number in row_groups}
        reader = self._reader(wanted.folder, storage) if None not in places.values() else None
        if reader is None:
            return {}
        parts = [(number, part) for number, place in places.items() if place for part in place.parts]
        path, tables = path_within(join(wanted.folder, shard)), dict[int, list[pa.Table]]()
        try:
            for start, end, together in _join(parts):
                data, version = reader(path, start, end - start)
                for number, part in together:
                    place = places[number]
                    if place is None or version != place.version:  # the shard has been replaced
                        return {}
                    mine = data.slice(part.start - start, part.length)
                    tables.setdefault(number, []).append(
                        read_row_group(mine, place.rows, part.chunks, checked=wanted.checked)
                    )
        except (OSError, pa.ArrowInvalid):
            count_event("storage_retries")
            return {}
        return {
            number: pa.table({name: table[name] for table in found for name in table.column_names})
            for number, found in tables.items()
        }

    def are_neighbors(self, wanted: Wanted, shard: str, row_groups: Sequence[int], storage: Storage) -> bool:
        """Whether these row groups of a shard lie next to each other, in a few megabytes, so that one request does."""
        places = [self._find(wanted, shard, number, storage) for number in row_groups]
        runs = list(_join([(0, part) for place in places if place for part in place.parts]))
        return None not in places and len(runs) == 1 and runs[0][1] - runs[0][0] <= _MOST

    def _find(self, wanted: Wanted, shard: str, row_group: int, storage: Storage) -> Place | None:
        if scheme_of(wanted.folder).open_ranges is None:
            return None
        index = self._index(wanted.folder, wanted.belongs_to, storage)
        return index.find(shard, row_group, wanted.columns) if index is not None else None

    def _index(self, folder: str, belongs_to: str, storage: Storage) -> RowGroupIndex | None:
        with self._lock:
            if (folder, belongs_to) not in self._indexes:
                self._indexes[folder, belongs_to] = read_index(folder, belongs_to, storage)
            return self._indexes[folder, belongs_to]

    def _reader(self, folder: str, storage: Storage) -> ReadRange | None:
        key, open_ranges = client_key(folder, storage), scheme_of(folder).open_ranges
        assert open_ranges is not None
        with self._lock:
            if key not in self._readers:
                self._readers[key] = open_ranges(folder, storage)
            return self._readers[key]


def _join(parts: Sequence[tuple[int, Part]]) -> Iterator[tuple[int, int, list[tuple[int, Part]]]]:
    """Runs of parts that lie next to each other: first byte, the byte after the last, and the parts."""
    run: list[tuple[int, Part]] = []
    for number, part in parts:
        if run and not 0 <= part.start - (run[-1][1].start + run[-1][1].length) <= GAP:
            yield run[0][1].start, run[-1][1].start + run[-1][1].length, run
            run = []
        run.append((number, part))
    if run:
        yield run[0][1].start, run[-1][1].start + run[-1][1].length, run
