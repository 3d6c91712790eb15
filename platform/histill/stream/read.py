"""Read row groups of a tile set, and of its cached responses, without decoding them."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histill.config.common import Storage
from histill.counts import count_event
from histill.errors import InputError
from histill.storage.cache import RowGroupCache
from histill.storage.memory import keep_freed_memory
from histill.storage.uris import is_remote, join
from histill.stream.cached_views import CachedViews
from histill.stream.decode import CorruptTile
from histill.stream.encoded import embedding_column, token_column
from histill.stream.open_shards import OpenShards
from histill.stream.ranged import RangedRowGroups, Wanted
from histill.stream.views import decode_view
from histill.tiles.contents import Expected, drop_damaged


@dataclass(frozen=True)
class DecodedCacheSpec:
    """How the node's cache stores tiles that it keeps decoded."""

    tile_px: int  # side in the tile set
    side: int  # side in the cache


@dataclass(frozen=True)
class TileSource:
    """Where tiles, and cached responses if any, are read from. Small, since it is sent to every read task."""

    tiles: str
    digest: str  # of the tile set
    storage: Storage
    masks: bool = False
    responses: CachedViews | None = None
    view: int = 0  # the cached view to read
    maps: bool = False  # whether to read the teacher's feature maps with its responses
    embeddings: tuple[tuple[str, CachedViews], ...] = ()  # caches of embeddings by teacher, read with their maps if any
    kept: DecodedCacheSpec | None = None  # None: the cache keeps row groups as they are stored


@dataclass(frozen=True)
class ReadRequest:
    """Some rows of one row group: `rows` (int64) are positions in the group, `entries` (int64) numbers in the plan."""

    shard: str
    row_group: int
    rows: np.ndarray
    entries: np.ndarray
    expected: Expected | None = None  # for every tile of the row group; None: do not verify


Held = dict[tuple[str, int], pa.Table]
"""Row groups of one shard that have been read already, by the folder and their number."""


class ShardReader:
    """Reads row groups in the requested order, `threads` requests at a time; keeps the shards' footers.

    One reader serves all epochs of a process. A row group costs one request, or none if the node's cache has it. Where
    no index says where it lies (see `ranged`), opening its shard costs two more. Transient failures are retried.
    """

    def __init__(self, threads: int = 4) -> None:
        self.threads = threads
        self._shards = OpenShards()
        self._caches: dict[str, RowGroupCache] = {}
        self._ranged = RangedRowGroups()
        self._lock = threading.Lock()

    def __call__(self, source: TileSource, reads: Iterable[ReadRequest]) -> Generator[pa.Table]:
        """Yield a table for each request: `entry`, `image`, and `mask`, `response` and `map` if requested, as stored.

        Where the cache keeps tiles decoded, `pixels` (see `decode_view`) replaces `image`, except for row groups with a
        tile that cannot be decoded.

        Raises InputError, naming the shard, when it is missing, truncated or refused by the storage.
        """
        keep_freed_memory()
        waiting: deque[Future[list[pa.Table]]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="read")
        try:
            for run in self._runs(source, reads):
                waiting.append(pool.submit(self._read_run, source, run))
                if len(waiting) > 2 * self.threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _runs(self, source: TileSource, reads: Iterable[ReadRequest]) -> Iterator[list[ReadRequest]]:
        """The requests, those together that follow each other and whose row groups are neighbors in the storage."""
        if not is_remote(source.tiles) or source.storage.cache is not None:  # which may have any of them
            yield from ([read] for read in reads)
            return
        wanted, run = list(_list_wanted(source)), list[ReadRequest]()
        for read in reads:
            groups = [each.row_group for each in (*run, read)]
            if run and not (
                read.shard == run[-1].shard
                and groups[-1] == groups[-2] + 1
                and all(self._ranged.are_neighbors(each, read.shard, groups, source.storage) for each in wanted)
            ):
                yield run
                run = []
            run.append(read)
        if run:
            yield run

    def _read_run(self, source: TileSource, run: Sequence[ReadRequest]) -> list[pa.Table]:
        held: Held = {}
        if len(run) > 1:
            groups = [read.row_group for read in run]
            for each in _list_wanted(source):
                found = self._ranged.read_together(each, run[0].shard, groups, source.storage)
                held |= {(each.folder, number): table for number, table in found.items()}
        return [self.read(source, read, held) for read in run]

    def read(self, source: TileSource, read: ReadRequest, held: Held | None = None) -> pa.Table:
        """Read the table of one request; `held` are row groups that have been read already."""
        held = held or {}
        table = self._tiles(source, read, held)
        for cached, columns in _list_answers(source):
            table = self._append(table, cached, source.storage, read, columns, held)
        return table.drop_columns(["tile_id"]).append_column("entry", pa.array(read.entries, pa.int64()))

    def _append(
        self,
        table: pa.Table,
        cached: CachedViews,
        storage: Storage,
        read: ReadRequest,
        columns: Mapping[str, str],
        held: Held,
    ) -> pa.Table:
        """`table` with these columns of the responses, by the names that they get."""
        answers = self._answers(cached, storage, read, list(columns.values()), held)
        if answers["tile_id"] != table["tile_id"]:
            uri = join(cached.uri, read.shard)
            raise InputError(
                f"responses {uri} belong to other tiles; delete them and cache the responses again.",
                code="responses-of-other-tiles",
            )
        for name, column in columns.items():
            table = table.append_column(name, answers[column])
        return table

    def _tiles(self, source: TileSource, read: ReadRequest, held: Held) -> pa.Table:
        uri, kept = join(source.tiles, read.shard), source.kept
        columns = _tile_columns(source)

        def fetch() -> tuple[pa.Table, bool]:
            table, sound = self._sound(source, read, columns, held)
            return (table if kept is None or not sound else _decode_kept(table, kept)), sound

        decoded = "" if kept is None else f"/decoded at {kept.side}"
        return self._row_group(uri, source.digest, read, columns, source.storage, fetch, decoded)

    def _sound(self, source: TileSource, read: ReadRequest, columns: list[str], held: Held) -> tuple[pa.Table, bool]:
        """Read a row group, with damaged tiles emptied; also return whether all are intact."""
        uri, storage = join(source.tiles, read.shard), source.storage
        table = held.get((source.tiles, read.row_group))
        if table is None:
            wanted = Wanted(source.tiles, source.digest, tuple(columns))
            table = self._ranged.read(wanted, read.shard, read.row_group, storage)
        if table is None:
            table = self._shards.read(uri, read.row_group, columns, storage)
        if read.expected is None:
            return table, True
        place = f"row group {read.row_group} of shard {uri}"
        with contextlib.suppress(InputError):
            if (found := drop_damaged(table, read.expected, place))[1]:
                return found
        self._shards.forget(uri, storage)  # index or footer may be of a shard that has been replaced since
        return drop_damaged(self._shards.read(uri, read.row_group, columns, storage), read.expected, place)

    def _answers(
        self, cached: CachedViews, storage: Storage, read: ReadRequest, columns: list[str], held: Held
    ) -> pa.Table:
        uri, columns = join(cached.uri, read.shard), ["tile_id", *columns]

        def fetch() -> tuple[pa.Table, bool]:
            wanted = Wanted(cached.uri, cached.name, tuple(columns), checked=True)
            table = held.get((cached.uri, read.row_group))
            if table is None:
                table = self._ranged.read(wanted, read.shard, read.row_group, storage)
            if table is None:
                table = self._shards.read(uri, read.row_group, columns, storage, belongs_to=cached.name)
            # missing responses may be added later, once their tiles are repaired
            return table, all(pc.min(pc.binary_length(table[name])).as_py() for name in columns)

        # The folder of a response cache is named by its content, so its URI identifies that content.
        return self._row_group(uri, cached.uri, read, columns, storage, fetch)

    def _row_group(
        self,
        uri: str,
        set_id: str,
        read: ReadRequest,
        columns: list[str],
        storage: Storage,
        fetch: Callable[[], tuple[pa.Table, bool]],
        kind: str = "",
    ) -> pa.Table:
        """The requested rows, from the cache or from `fetch`, which also says whether the row group may be cached."""
        cache, key = self._cache(set_id, storage), f"{read.shard}/{read.row_group}/{','.join(columns)}{kind}"
        table = cache.get(key) if cache else None
        if cache:
            count_event("cache_misses" if table is None else "cache_hits")
        if table is None:
            table, lasting = fetch()
            if cache and lasting:
                cache.put(key, table)
        if max(read.rows) >= table.num_rows:
            raise InputError(
                f"shard {uri} has fewer rows than its manifest says; delete it and make it again.", code="tiles-damaged"
            )
        return table if len(read.rows) == table.num_rows else table.take(pa.array(read.rows))

    def _cache(self, set_id: str, storage: Storage) -> RowGroupCache | None:
        if storage.cache is None:
            return None
        with self._lock:
            if set_id not in self._caches:
                self._caches[set_id] = RowGroupCache(storage.cache.folder, storage.cache.max_bytes, set_id)
            return self._caches[set_id]


def _tile_columns(source: TileSource) -> list[str]:
    return ["image", "mask", "tile_id"] if source.masks else ["image", "tile_id"]


def _list_answers(source: TileSource) -> Iterator[tuple[CachedViews, Mapping[str, str]]]:
    """The caches to read, and for each the columns to read by the names that they get."""
    if source.responses is not None:
        maps = {"map": source.responses.map_column(source.view)} if source.maps else {}
        yield source.responses, {"response": source.responses.column(source.view)} | maps
    for name, cached in source.embeddings:
        tokens = {} if cached.map_shape is None else {token_column(name): cached.map_column(source.view)}
        yield cached, {embedding_column(name): cached.column(source.view)} | tokens


def _list_wanted(source: TileSource) -> Iterator[Wanted]:
    """All that is read of a row group."""
    yield Wanted(source.tiles, source.digest, tuple(_tile_columns(source)))
    for cached, columns in _list_answers(source):
        yield Wanted(cached.uri, cached.name, ("tile_id", *columns.values()), checked=True)


def _decode_kept(table: pa.Table, kept: DecodedCacheSpec) -> pa.Table:
    """Replace `image` by the decoded `pixels`; return `table` unchanged if a tile cannot be decoded."""
    try:
        pixels = [decode_view(image.as_buffer().to_pybytes(), kept.tile_px, kept.side) for image in table["image"]]
    except CorruptTile:  # reported when it is used, if it is used at all
        return table
    return table.drop_columns(["image"]).append_column("pixels", pa.array(pixels, pa.binary()))
