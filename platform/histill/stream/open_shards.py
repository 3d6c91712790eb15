"""Read row groups of shards by their footers, and keep these, and the connections, for the next ones."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.filesystems import arrow_filesystem, client_key, storage_errors
from histill.storage.retry import with_retries
from histill.storage.tables import is_damage, is_part_of
from histill.storage.uris import is_remote, path_within

OPEN_SHARDS = 512
_CLIENT_ATTEMPTS = 2  # within the client itself; the errors that it raises are retried here, and logged


class OpenShards:
    """The shards that a process reads from, opened as they are needed; several threads may read at once."""

    def __init__(self) -> None:
        self._shards: OrderedDict[tuple[Hashable, str], tuple[pa.NativeFile | None, pq.FileMetaData]] = OrderedDict()
        self._clients: dict[Hashable, FileSystem] = {}  # kept to reuse their connections
        self._lock = threading.Lock()

    def read(
        self, uri: str, row_group: int, columns: list[str], storage: Storage, belongs_to: str | None = None
    ) -> pa.Table:
        """Read columns of a row group; for responses, which belong to a cache, page checksums are verified.

        If that fails with a footer kept from before, read once more, since the shard may have been replaced.
        Raises InputError for a shard that is missing, damaged, or of another set.
        """
        with self._lock:
            kept = (client_key(uri, storage), uri) in self._shards
        try:
            return self._read_once(uri, row_group, columns, storage, belongs_to)
        except InputError:
            if not kept:
                raise
            self.forget(uri, storage)
            return self._read_once(uri, row_group, columns, storage, belongs_to)

    def _read_once(
        self, uri: str, row_group: int, columns: list[str], storage: Storage, belongs_to: str | None
    ) -> pa.Table:
        def fetch() -> pa.Table:
            try:
                with self._open(uri, storage) as (file, footer):
                    if belongs_to is not None and not is_part_of(footer.metadata, belongs_to):
                        raise InputError(
                            f"responses {uri} do not belong to the cache {belongs_to}; delete them and cache the "
                            "responses again.",
                            code="responses-of-other-tiles",
                        )
                    # Adjacent columns are fetched by one request; the buffers are freed with this ParquetFile.
                    checked = belongs_to is not None
                    parquet = pq.ParquetFile(file, metadata=footer, pre_buffer=True, page_checksum_verification=checked)
                    return parquet.read_row_group(row_group, columns=columns, use_threads=False)
            except (OSError, pa.ArrowInvalid, IndexError) as error:
                self.forget(uri, storage)
                if not isinstance(error, IndexError) and not is_damage(error, uri):
                    raise
                again = "cache the responses again" if belongs_to is not None else "repeat the ingest that made it"
                raise InputError(
                    f"shard {uri} cannot be read (row group {row_group}: {str(error).splitlines()[0]}); "
                    f"it is truncated, overwritten or damaged, so delete it and {again}.",
                    code="tiles-damaged",
                ) from None

        try:
            with storage_errors(uri, storage):
                table = with_retries(fetch, storage, uri=uri)
        except FileNotFoundError:
            if belongs_to is not None:
                raise InputError(
                    f"responses {uri} are missing; cache the responses again.", code="responses-missing"
                ) from None
            raise InputError(
                f"shard {uri} is missing though the manifest names it; repeat the ingest that made it.",
                code="tiles-damaged",
            ) from None
        for column in columns:
            if column not in table.column_names:
                raise InputError(
                    f"shard {uri} has no column {column!r}; it is of another tile set, so delete and make it again.",
                    code="tiles-damaged",
                )
        return table

    @contextlib.contextmanager
    def _open(self, uri: str, storage: Storage) -> Iterator[tuple[pa.NativeFile, pq.FileMetaData]]:
        """The open shard and its footer. For a local file only the footer is kept, since open files are limited."""
        key = client_key(uri, storage)
        with self._lock:
            file, footer = self._shards.get((key, uri), (None, None))
            if footer is not None:
                self._shards.move_to_end((key, uri))
            if key not in self._clients:
                self._clients[key], _ = arrow_filesystem(uri, storage, attempts=_CLIENT_ATTEMPTS)
            client = self._clients[key]
        if file is None:
            file = client.open_input_file(path_within(uri))
        try:
            if footer is None:
                footer = pq.read_metadata(file)
                with self._lock:
                    self._shards[key, uri] = (file if is_remote(uri) else None), footer
                    while len(self._shards) > OPEN_SHARDS:
                        self._shards.popitem(last=False)
            yield file, footer
        finally:
            if not is_remote(uri):
                file.close()

    def forget(self, uri: str, storage: Storage) -> None:
        """Drop the shard and its client, since a client that has failed often raises every error without a retry."""
        key = client_key(uri, storage)
        with self._lock:
            self._shards.pop((key, uri), None)
            self._clients.pop(key, None)
