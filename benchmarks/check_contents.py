"""The cost of comparing tiles with the manifest's hashes when they are read, relative to streaming them.

    python -m benchmarks.check_contents

One process and one thread, from the local disk: CPU microseconds per tile of an exact pass over JPEG tiles of
512 px seen at 224, and of 128 px seen at 128; and of the check alone, on row groups as the reader returns them.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg

from histill.config.common import Storage
from histill.stream.index import SampleIndex
from histill.stream.open_shards import OpenShards
from histill.stream.read import ShardReader, TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.testing.tile_sets import write_tile_set
from histill.tiles.contents import drop_damaged
from histill.tiles.manifest import Manifest
from histill.tiles.shards import Tile

PER_GROUP = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    for tile_px, seen_px in ((512, 224), (128, 128)):
        with tempfile.TemporaryDirectory() as folder:
            manifest = tiles_of(f"{folder}/tiles", arguments.tiles, tile_px)
            found = {"tile_px": tile_px, "seen_px": seen_px, "tiles": arguments.tiles}
            found["kilobytes"] = sum(p.stat().st_size for p in Path(folder).rglob("0*.parquet")) / arguments.tiles / 1e3
            found["stream_us"] = least(lambda m=manifest, s=seen_px: stream(m, s), arguments) / arguments.tiles
            tables = read(manifest)
            found["check_us"] = least(lambda t=tables: check(t), arguments) / arguments.tiles
            found["share"] = found["check_us"] / found["stream_us"]
            print(json.dumps({key: round(value, 4) for key, value in found.items()}), flush=True)


def tiles_of(uri: str, count: int, tile_px: int) -> Manifest:
    """Tiles with about as many bytes as stained tissue: smooth color and grain."""
    rng = np.random.default_rng(0)
    tiles = []
    for number in range(count):
        coarse = rng.uniform(120, 240, (tile_px // 16, tile_px // 16, 3)).repeat(16, 0).repeat(16, 1)
        image = np.clip(coarse + rng.normal(0, 9, (tile_px, tile_px, 1)), 0, 255).astype(np.uint8)
        data = simplejpeg.encode_jpeg(image, quality=85, colorsubsampling="444")
        tiles.append(Tile(str(number), "slide", "case", number, 0, 0.5, None, data, None))
    return write_tile_set(
        uri, tiles, ["train"] * count, tile_px=tile_px, per_shard=256, per_group=PER_GROUP, storage=Storage()
    )


def stream(manifest: Manifest, seen_px: int) -> None:
    """One exact pass like a worker's, with the check."""
    source = TileSource(manifest.uri, manifest.header.digest, Storage())
    tiles = TileStream(
        manifest=manifest, source=source, split="train", views=Views(seen_px), batch_size=64, worker=0, workers=1,
        read=ShardReader(1), threads=1,
    )  # fmt: skip
    assert sum(int(batch.valid.sum()) for batch in tiles.exact_pass()) == manifest.header.tiles


def read(manifest: Manifest) -> list[tuple]:
    """Every row group and its expected contents."""
    source = TileSource(manifest.uri, manifest.header.digest, Storage())
    reads = SampleIndex.of(manifest, "train").reads(np.arange(manifest.header.tiles))
    shards = OpenShards()
    return [
        (shards.read(f"{manifest.uri}/{each.shard}", each.row_group, ["image", "tile_id"], source.storage), each)
        for each in reads
    ]


def check(tables: list[tuple]) -> None:
    for table, each in tables:
        assert drop_damaged(table, each.expected, "a row group")[1]


def least(action: Callable[[], None], arguments: argparse.Namespace) -> float:
    """The minimum CPU microseconds of several repeats."""
    found = []
    for _ in range(arguments.repeats):
        begun = time.process_time()
        action()
        found.append((time.process_time() - begun) * 1e6)
    return min(found)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
