"""histill's own stream over the benchmark's shards; needs more than torch, timm, pandas and pyarrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from benchmarks.loaders.tiles import SIDE_PX
from histill.config.common import Storage
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tiles.contents import content_hash
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import TABLE_NAME, read_manifest, write_manifest
from histill.tiles.schema import MANIFEST

MPP = 0.25


def read_epoch(folder: Path, shards: list[Path], side: int, batch: int, threads: int) -> Iterator[Tensor]:
    """An epoch of training batches, uint8 [B, 3, side, side]."""
    manifest = _manifest(folder, shards)
    stream = TileStream(
        manifest=manifest,
        source=TileSource(manifest.uri, manifest.header.digest, Storage()),
        split="train",
        views=Views(side),
        batch_size=batch,
        worker=0,
        workers=1,
        threads=threads,
    )
    for each in stream.training_epoch(0, seed=0):
        yield each.student


def _manifest(folder: Path, shards: list[Path]) -> Manifest:
    """That of the tile set in `folder`, written the first time."""
    if not (folder / TABLE_NAME).exists():
        rows = [row for path in shards for row in _rows(path)]
        table = pa.Table.from_pylist(rows, schema=MANIFEST)
        write_manifest(str(folder), table, tile_px=SIDE_PX, mpp=MPP, ingest="generator", storage=Storage())
    return read_manifest(str(folder), Storage())


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for row, tile in enumerate(file.read_row_group(group).to_pylist()):
                yield {
                    "tile_id": tile["tile_id"], "slide": path.stem, "case": path.stem, "x": 0, "y": 0, "mpp": MPP,
                    "size_px": SIDE_PX, "label": None, "has_mask": False, "split": "train",
                    "shard": f"{path.parent.name}/{path.name}", "row_group": group, "row": row,
                    "content": content_hash(tile["image"], None),
                }  # fmt: skip
