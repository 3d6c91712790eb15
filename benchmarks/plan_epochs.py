"""How well the plan mixes tiles, what it costs, and how soon a large tile set gives its first batch.

    python -m benchmarks.plan_epochs [--tiles 1000000]

Prints a table comparing the mix with a true shuffle, one of the planning cost for 1, 10 and 100 million tiles, and as
its last line one JSON object. The tile set of the last part is generated: its rows share the bytes of a
few real shards.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from tabulate import tabulate

from benchmarks.loaders.tiles import make_tiles
from histill.config.common import Storage
from histill.local.s3 import s3_server
from histill.stream.plan import EpochPlan, plan_steps
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tiles.manifest_file import read_manifest, write_manifest
from histill.tiles.schema import MANIFEST
from histill.tiles.shards import Tile, content_hash, write_shard

TILE_PX, PER_GROUP, GROUPS_PER_SHARD, SHARDS = 512, 64, 4, 8
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=1_000_000, help="tiles of the set whose first batch is timed")
    arguments = parser.parse_args()

    mixes = [
        row
        for tiles, per_slide, batch in ((20_000, 500, 64), (200_000, 2000, 64), (200_000, 2000, 512))
        for row in mix(tiles, per_slide, batch)
    ]
    print(tabulate(mixes, headers="keys", floatfmt=".3f"), end="\n\n")
    costs = [planning_cost(millions) for millions in (1, 10, 100)]
    print(tabulate(costs, headers="keys", floatfmt=".3f"), end="\n\n")
    print(json.dumps({"mix": mixes, "planning": costs, "first_batch": first_batch(arguments.tiles)}))


def mix(tiles: int, per_slide: int, batch: int, seed: int = 0, epochs: int = 3) -> list[dict[str, object]]:
    """Compare the plan's batches with those of a true shuffle, for consecutive slides of `per_slide` tiles."""
    starts = np.append(np.arange(0, tiles, PER_GROUP), tiles)
    planned, shuffled = [], []
    for epoch in range(epochs):
        plan = EpochPlan(starts, batch, seed, epoch, max(4096, 64 * batch))
        planned += [step.entries for step in plan_steps(plan, 0, 1)][:-1]
        order = np.random.default_rng([seed, epoch]).permutation(tiles)
        shuffled += list(order[: len(order) // batch * batch].reshape(-1, batch))
    return [
        {"tiles": tiles, "batch": batch, "order": name} | mix_of(np.stack(batches), per_slide)
        for name, batches in (("plan", planned), ("true shuffle", shuffled))
    ]


def mix_of(batches: np.ndarray, per_slide: int) -> dict[str, float]:
    """Means over the batches, and the spread of the batches' mean positions in the storage."""
    ranks = np.argsort(np.argsort(batches, axis=1), axis=1)
    centerd, places = ranks - ranks.mean(1, keepdims=True), np.arange(batches.shape[1]) - (batches.shape[1] - 1) / 2
    correlation = centerd @ places / (places @ places)
    slides, groups = np.sort(batches // per_slide, axis=1), np.sort(batches // PER_GROUP, axis=1)
    return {
        "|rank correlation|": float(np.abs(correlation).mean()),
        "slides in a batch": float((np.diff(slides, axis=1) != 0).sum(1).mean() + 1),
        "row groups in a batch": float((np.diff(groups, axis=1) != 0).sum(1).mean() + 1),
        "scatter of batch means": float(batches.mean(1).std() / batches.std()),
    }


def planning_cost(millions: int) -> dict[str, float]:
    """Seconds until the first batch of an epoch is planned, and to plan all of it (from 2,000 batches)."""
    tiles = millions * 1_000_000
    starts = np.append(np.arange(0, tiles, PER_GROUP), tiles)
    begun = time.perf_counter()
    steps = plan_steps(EpochPlan(starts, BATCH, 0, 0, 4096), 0, 1)
    next(steps)
    first = time.perf_counter() - begun
    begun, some = time.perf_counter(), 2000
    for _ in range(some):
        next(steps)
    per_step = (time.perf_counter() - begun) / some
    return {
        "million tiles": millions,
        "first batch s": first,
        "us/tile": per_step / BATCH * 1e6,
        "whole epoch s": per_step * tiles / BATCH,
    }


def first_batch(tiles: int) -> dict[str, float]:
    """Seconds from the start to the first decoded batch of a set of `tiles`, read from a real S3 server."""
    storage = Storage()
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder), "plan") as server:
        os.environ.update(server.environment())
        uri = f"s3://{server.bucket}/large"
        images = [path.read_bytes() for path in make_tiles(Path(folder) / "tiles", PER_GROUP, 0)]
        write_large_set(uri, images, tiles, storage)
        begun = time.perf_counter()
        manifest = read_manifest(uri, storage)
        manifest_s = time.perf_counter() - begun
        stream = TileStream(
            manifest=manifest,
            source=TileSource(uri, manifest.header.digest, storage),
            split="train",
            views=Views(128),
            batch_size=BATCH,
            worker=0,
            workers=1,
        )
        batch = next(stream.training_epoch(0, seed=0))
        assert batch.valid.all()
        return {
            "tiles": tiles,
            "manifest_s": manifest_s,
            "first_batch_s": time.perf_counter() - begun,
            "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        }


def write_large_set(uri: str, images: list[bytes], tiles: int, storage: Storage) -> None:
    """A manifest of `tiles` rows over the same few shards."""
    per_shard = PER_GROUP * GROUPS_PER_SHARD
    for shard in range(SHARDS):
        rows = [Tile(str(n), "s", "c", 0, 0, 0.5, None, images[n % len(images)], None) for n in range(per_shard)]
        write_shard(f"{uri}/shards/{shard}.parquet", rows, PER_GROUP, storage)
    number = np.arange(tiles)
    names = pa.array([f"shards/{shard}.parquet" for shard in range(SHARDS)])
    contents = pa.array([content_hash(image, None) for image in images])
    slides = pa.array([f"slide-{slide}" for slide in range(tiles // 5000 + 1)])
    constant = {"mpp": 0.5, "size_px": TILE_PX, "label": None, "has_mask": False, "split": "train"}
    columns = {
        "tile_id": pa.array(np.char.add("tile-", number.astype(str))),
        "slide": slides.take(pa.array(number // 5000)),
        "case": slides.take(pa.array(number // 5000)),
        "x": number % 1000 * TILE_PX,
        "y": number // 1000 * TILE_PX,
        "shard": names.take(pa.array(number // per_shard % SHARDS)),
        "row_group": number // PER_GROUP % GROUPS_PER_SHARD,
        "row": number % PER_GROUP,
        "content": contents.take(pa.array(number % per_shard % len(images))),
    } | {name: pa.repeat(pa.scalar(value, MANIFEST.field(name).type), tiles) for name, value in constant.items()}
    table = pa.table(columns).select(MANIFEST.names).cast(MANIFEST)
    write_manifest(uri, table, tile_px=TILE_PX, mpp=0.5, ingest="generator", storage=storage)


if __name__ == "__main__":
    main()
