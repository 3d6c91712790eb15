"""One row group of a tile set (and of its cached responses), read but not decoded."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.storage.uris import join
from histill.stream.responses import RESPONSE
from histill.tiles.manifest import Manifest


@dataclass(frozen=True)
class Source:
    """Where tiles, and cached responses if any, are read from. Small, and sent to every reading task."""

    tiles: str
    storage: Storage
    masks: bool = False
    responses: str | None = None


@dataclass(frozen=True)
class GroupRead:
    """Some rows of one row group: `rows` are positions in the group, `tiles` their rows in the manifest."""

    shard: str
    row_group: int
    rows: tuple[int, ...]
    tiles: tuple[int, ...]


def reads_for(manifest: Manifest, batches: np.ndarray) -> list[GroupRead]:
    """What must be read for `batches` [steps, n], each row group once, in the order in which it is first needed."""
    wanted = batches[batches >= 0].ravel()
    table = manifest.table.take(pa.array(wanted))
    shards, groups, rows = (table[name].to_pylist() for name in ("shard", "row_group", "row"))
    reads: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for shard, group, row, tile in zip(shards, groups, rows, wanted.tolist(), strict=True):
        reads.setdefault((shard, group), []).append((row, tile))
    return [
        GroupRead(shard, group, *(tuple(part) for part in zip(*pairs, strict=True)))
        for (shard, group), pairs in reads.items()
    ]


def read_groups(source: Source, reads: Iterable[GroupRead]) -> Iterator[pa.Table]:
    """For each read a table of encoded tiles: `tile` (manifest row), `image`, and `mask` and `response` if asked for.

    Raises InputError that names the shard when it is missing, truncated or refused by the storage.
    """
    columns = ["image", "mask"] if source.masks else ["image"]
    for read in reads:
        table = _row_group(join(source.tiles, read.shard), read, [*columns, "tile_id"], source.storage)
        if source.responses is not None:
            answers = _row_group(join(source.responses, read.shard), read, RESPONSE.names, source.storage)
            if answers["tile_id"] != table["tile_id"]:
                raise InputError(
                    f"responses {join(source.responses, read.shard)} belong to other tiles than {source.tiles}; "
                    "cache the responses of this tile set with jobs/cache_responses.py."
                )
            table = table.append_column("response", answers["response"])
        yield table.drop_columns(["tile_id"]).append_column("tile", pa.array(read.tiles, pa.int64()))


def _row_group(uri: str, read: GroupRead, columns: list[str], storage: Storage) -> pa.Table:
    filesystem, path = arrow_filesystem(uri, storage)
    try:
        with storage_errors(uri, storage), filesystem.open_input_file(path) as file:
            parquet = pq.ParquetFile(file, pre_buffer=True)
            table = parquet.read_row_group(read.row_group, columns=columns)
    except FileNotFoundError:
        raise InputError(f"shard {uri} is missing though the manifest names it; ingest the tiles again.") from None
    except (pa.ArrowInvalid, IndexError) as error:
        raise InputError(
            f"shard {uri} cannot be read (row group {read.row_group}: {str(error).splitlines()[0]}); "
            "it is truncated or overwritten, so delete it and make it again."
        ) from None
    for column in columns:
        if column not in table.column_names:
            raise InputError(f"shard {uri} has no column {column!r}; it is not one of this tile set, so make it again.")
    if max(read.rows) >= table.num_rows:
        raise InputError(f"shard {uri} has fewer rows than its manifest says; delete it and make it again.")
    return table.take(pa.array(read.rows))
