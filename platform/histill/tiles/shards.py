"""Writing shards: Parquet files of encoded tiles."""

import hashlib
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from histill.config.common import Storage
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.storage.uris import is_s3
from histill.tiles.schema import SHARD


@dataclass(frozen=True)
class Tile:
    """One encoded tile and what the manifest says of it; `x` and `y` are level-0 pixels, `mpp` is um/px."""

    tile_id: str
    slide: str
    case: str
    x: int
    y: int
    mpp: float
    label: str | None
    image: bytes
    mask: bytes | None


def content_hash(image: bytes, mask: bytes | None) -> str:
    """Hex BLAKE2b-128 over the image's bytes, then the mask's."""
    digest = hashlib.blake2b(image, digest_size=16)
    digest.update(mask or b"")
    return digest.hexdigest()


def write_shard(uri: str, tiles: Sequence[Tile], rows_per_group: int, storage: Storage) -> None:
    """Write `tiles` as one Parquet file, whole or not at all. Raises InputError when the storage refuses."""
    columns = {
        "tile_id": [tile.tile_id for tile in tiles],
        "image": [tile.image for tile in tiles],
        "mask": [tile.mask for tile in tiles],
    }
    table = pa.Table.from_pydict(columns, schema=SHARD)
    # JPEG and PNG do not shrink further, and a row group that needs no unpacking is one copy less for the
    # reader.
    write_table(uri, table, storage, row_group_size=rows_per_group, compression="none")


def write_table(uri: str, table: pa.Table, storage: Storage, *, row_group_size: int, compression: str) -> None:
    """Write a Parquet file, whole or not at all. Raises InputError when the storage refuses."""
    filesystem, path = arrow_filesystem(uri, storage)
    options = {
        "row_group_size": row_group_size,
        "compression": compression,
        "use_dictionary": False,
        "write_statistics": False,
    }
    with storage_errors(uri, storage):
        if is_s3(uri):  # the object appears when its upload is completed
            pq.write_table(table, path, filesystem=filesystem, **options)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        part = f"{path}.{uuid.uuid4().hex[:8]}.part"
        try:
            pq.write_table(table, part, **options)
            os.replace(part, path)
        finally:
            if os.path.exists(part):
                os.remove(part)
