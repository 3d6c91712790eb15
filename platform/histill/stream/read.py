"""Row groups of a tile set (and of its cached responses), read but not decoded."""

import threading
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.cache import RowGroupCache
from histill.storage.filesystems import arrow_filesystem, arrow_path, storage_errors
from histill.storage.retry import retried
from histill.storage.uris import bucket_of, join
from histill.stream.cached_views import CachedViews
from histill.stream.decode import CorruptTile
from histill.stream.views import pixels_of

OPEN_SHARDS = 512
_CLIENT_ATTEMPTS = 2  # of the S3 client itself; what it hands on is tried again here, and said so in the log


@dataclass(frozen=True)
class Kept:
    """Tiles that the storage's cache keeps decoded."""

    tile_px: int  # as they are stored
    side: int  # as they are kept


@dataclass(frozen=True)
class Source:
    """Where tiles, and cached responses if any, are read from. Small, and sent to every reading task."""

    tiles: str
    digest: str  # of the tile set
    storage: Storage
    masks: bool = False
    responses: CachedViews | None = None
    view: int = 0  # of the cached ones, the one that is read
    maps: bool = False  # whether the teacher's feature maps are read with its responses
    kept: Kept | None = None  # what the cache keeps decoded; None: row groups as they are


@dataclass(frozen=True)
class GroupRead:
    """Some rows of one row group: `rows` (int64) are positions in the group, `entries` (int64) those of the plan."""

    shard: str
    row_group: int
    rows: np.ndarray
    entries: np.ndarray


class ShardReader:
    """Reads row groups in the order asked for, `threads` requests at a time; keeps the shards' footers.

    One serves all epochs of a process: an open shard costs two requests, a row group one, and none at all when the
    storage's cache has it. Failures that pass are tried again.
    """

    def __init__(self, threads: int = 4) -> None:
        self.threads = threads
        self._shards: OrderedDict[str, tuple[pa.NativeFile, pq.FileMetaData]] = OrderedDict()
        self._clients: dict[tuple[str | None, str], FileSystem] = {}  # kept, so that connections are used again
        self._caches: dict[str, RowGroupCache] = {}
        self._lock = threading.Lock()

    def __call__(self, source: Source, reads: Iterable[GroupRead]) -> Generator[pa.Table]:
        """For each read a table: `entry`, `image`, and `mask`, `response` and `map` if asked for, as they are stored.

        Where the cache keeps tiles decoded, `pixels` (see `pixels_of`) stands in place of `image`, but for row groups
        with a tile that cannot be decoded.

        Raises InputError that names the shard when it is missing, truncated or refused by the storage.
        """
        waiting: deque[Future[pa.Table]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="read")
        try:
            for read in reads:
                waiting.append(pool.submit(self.read, source, read))
                if len(waiting) > 2 * self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def read(self, source: Source, read: GroupRead) -> pa.Table:
        """One row group's table."""
        columns = ["image", "mask"] if source.masks else ["image"]
        uri = join(source.tiles, read.shard)
        table = self._row_group(uri, source.digest, read, [*columns, "tile_id"], source.storage, source.kept)
        if source.responses is not None:
            folder, answered = source.responses.uri, {"response": source.responses.column(source.view)}
            if source.maps:
                answered["map"] = source.responses.map_column(source.view)
            uri = join(folder, read.shard)
            # The folder of cached responses is named by what they answer, so its URI stands for their content.
            answers = self._row_group(uri, folder, read, ["tile_id", *answered.values()], source.storage)
            if answers["tile_id"] != table["tile_id"]:
                raise InputError(f"responses {uri} belong to other tiles; cache the responses again.")
            for name, column in answered.items():
                table = table.append_column(name, answers[column])
        return table.drop_columns(["tile_id"]).append_column("entry", pa.array(read.entries, pa.int64()))

    def _row_group(
        self, uri: str, set_id: str, read: GroupRead, columns: list[str], storage: Storage, kept: Kept | None = None
    ) -> pa.Table:
        cache, key = self._cache(set_id, storage), f"{read.shard}/{read.row_group}/{','.join(columns)}"
        if kept is not None:
            key += f"/decoded at {kept.side}"
        table = cache.get(key) if cache else None
        if table is None:
            table = self._fetched(uri, read.row_group, columns, storage)
            if cache:
                table = table if kept is None else _decoded(table, kept)
                cache.put(key, table)
        if max(read.rows) >= table.num_rows:
            raise InputError(f"shard {uri} has fewer rows than its manifest says; delete it and make it again.")
        return table if len(read.rows) == table.num_rows else table.take(pa.array(read.rows))

    def _fetched(self, uri: str, row_group: int, columns: list[str], storage: Storage) -> pa.Table:
        def fetch() -> pa.Table:
            try:
                file, footer = self._shard(uri, storage)
                # Neighbouring columns come with one request; the buffers go with this reader, not with the shard.
                parquet = pq.ParquetFile(file, metadata=footer, pre_buffer=True)
                return parquet.read_row_group(row_group, columns=columns, use_threads=False)
            except OSError:
                self._forget(uri, storage)
                raise

        try:
            with storage_errors(uri, storage):
                table = retried(fetch, storage, what=f"shard {uri}")
        except FileNotFoundError:
            raise InputError(f"shard {uri} is missing though the manifest names it; ingest the tiles again.") from None
        except (pa.ArrowInvalid, IndexError) as error:
            raise InputError(
                f"shard {uri} cannot be read (row group {row_group}: {str(error).splitlines()[0]}); "
                "it is truncated or overwritten, so delete it and make it again."
            ) from None
        for column in columns:
            if column not in table.column_names:
                raise InputError(
                    f"shard {uri} has no column {column!r}; it is not one of this tile set, so make it again."
                )
        return table

    def _cache(self, set_id: str, storage: Storage) -> RowGroupCache | None:
        if storage.cache is None:
            return None
        with self._lock:
            if set_id not in self._caches:
                self._caches[set_id] = RowGroupCache(storage.cache.folder, storage.cache.max_bytes, set_id)
            return self._caches[set_id]

    def _shard(self, uri: str, storage: Storage) -> tuple[pa.NativeFile, pq.FileMetaData]:
        with self._lock:
            if uri in self._shards:
                self._shards.move_to_end(uri)
                return self._shards[uri]
            kind = _kind_of_client(uri, storage)
            if kind not in self._clients:
                self._clients[kind], _ = arrow_filesystem(uri, storage, attempts=_CLIENT_ATTEMPTS)
            client = self._clients[kind]
        file = client.open_input_file(arrow_path(uri))
        shard = file, pq.read_metadata(file)
        with self._lock:
            self._shards[uri] = shard
            while len(self._shards) > OPEN_SHARDS:
                self._shards.popitem(last=False)
        return shard

    def _forget(self, uri: str, storage: Storage) -> None:
        """Next time with a new client: one that has failed often hands on every error without a second try."""
        with self._lock:
            self._shards.pop(uri, None)
            self._clients.pop(_kind_of_client(uri, storage), None)


def _kind_of_client(uri: str, storage: Storage) -> tuple[str | None, str]:
    """What those have in common that one client can read."""
    return bucket_of(uri), storage.model_dump_json()


def _decoded(table: pa.Table, kept: Kept) -> pa.Table:
    """`table` with `pixels` in place of `image`; the same table where a tile cannot be decoded."""
    try:
        pixels = [pixels_of(image.as_buffer().to_pybytes(), kept.tile_px, kept.side) for image in table["image"]]
    except CorruptTile:  # named where it is used, if that is allowed at all
        return table
    return table.drop_columns(["image"]).append_column("pixels", pa.array(pixels, pa.binary()))
