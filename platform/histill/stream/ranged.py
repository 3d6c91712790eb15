"""Read row groups by one request each, where an index says where they lie."""

import threading
from collections.abc import Hashable, Sequence

import pyarrow as pa

from histill.config.common import Storage
from histill.counts import count_event
from histill.storage.filesystems import client_key
from histill.storage.row_group_file import read_row_group
from histill.storage.row_group_index import RowGroupIndex, read_index
from histill.storage.scheme import ReadRange, scheme_of
from histill.storage.uris import join, path_within


class RangedRowGroups:
    """Row groups of folders of shards that have an index (`row_group_index`). Safe across threads."""

    def __init__(self) -> None:
        self._indexes: dict[tuple[str, str], RowGroupIndex | None] = {}
        self._readers: dict[Hashable, ReadRange | None] = {}
        self._lock = threading.Lock()

    def read(
        self,
        folder: str,
        belongs_to: str,
        shard: str,
        row_group: int,
        columns: Sequence[str],
        storage: Storage,
        *,
        checked: bool = False,
    ) -> pa.Table | None:
        """Some columns of a row group; None where there is no index, or whenever anything is not as it says.

        The shard must then be read by its footer, which also tells what is wrong.

        Args:
            belongs_to: what the index must be of: a tile set's digest, or the name of a cache of responses.
            checked: verify the checksums of pages.
        """
        if scheme_of(folder).open_ranges is None:
            return None
        index = self._index(folder, belongs_to, storage)
        place = index.find(shard, row_group, columns) if index is not None else None
        reader = self._reader(folder, storage) if place is not None else None
        if place is None or reader is None:
            return None
        path, tables = path_within(join(folder, shard)), []
        try:
            for part in place.parts:
                data, version = reader(path, part.start, part.length)
                if version != place.version:  # the shard has been replaced
                    return None
                tables.append(read_row_group(data, place.rows, part.chunks, checked=checked))
        except (OSError, pa.ArrowInvalid):
            count_event("storage_retries")
            return None
        return pa.table({name: table[name] for table in tables for name in table.column_names})

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
