"""What a manifest of up to 100 million rows costs: the memory of a worker, of a node and of a driver, and the wait.

    python -m benchmarks.manifest [--rows 100000000]

The rows are generated like those of an ingest of slides with 5,000 tiles each, 18 bytes a row in the store; they share
the bytes of 32 shards of small tiles, all of them different. Storage is a real S3 server on this machine. Each figure
is of a process of its own. The last line is one JSON object:

- `worker_private_mb`: what one training worker holds for the manifest, for where its tiles lie and for the plan, once
  it has its first batch (its private memory less that before it opened the manifest);
- `node_shared_mb`: the pages that all workers of the node share, after every tile's hash was looked up, as in an epoch;
- `first_batch_s`, `first_batch_cold_s`: from opening the manifest to the first decoded batch, with the node's copy
  there and without it (then the manifest is fetched, checked and written in the form that is mapped);
- `driver_mb`: the highest that a driver takes which reads splits, cases, labels and the balance of classes;
- `write_s`, `writer_mb`: writing it in pieces, and what that takes; `stored_mb`, `copy_mb`: in the store and on disk.
"""

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg

from histill.config.common import ShardCache, Storage
from histill.local.s3 import s3_server
from histill.outputs import OutputSpec
from histill.storage.control import list_sizes
from histill.storage.records import write_record
from histill.stream.index import check_balance
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tiles.manifest import HEADER_NAME
from histill.tiles.manifest_file import TABLE_NAME, read_manifest, write_manifest, write_rows
from histill.tiles.schema import MANIFEST
from histill.tiles.shards import Tile, content_hash, write_shard

TILE_PX, PER_GROUP, PER_SHARD, SHARDS, PER_SLIDE = 64, 64, 1024, 32, 5000
BATCH = 64
PIECE = 1 << 20
CLASSES = ("benign", "stroma", "tumor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000, help="rows of the manifest")
    rows = parser.parse_args().rows
    print(json.dumps(measure(rows)))


def measure(rows: int) -> dict[str, float]:
    """All figures of a manifest of `rows`."""
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder) / "s3", "manifest") as server:
        os.environ.update(server.environment())
        uri, cache = f"s3://{server.bucket}/tiles", Path(folder) / "cache"
        storage = Storage(cache=ShardCache(folder=str(cache), max_gb=1))
        found = {"rows": rows} | _alone(_write, uri, rows, storage)
        # what the writer left on this node is another node's for the next measurement
        _clear(cache)
        cold = _alone(_work, uri, storage)
        found |= {"first_batch_cold_s": cold["first_batch_s"], "cold_peak_mb": cold["worker_peak_mb"]}
        found |= _alone(_work, uri, storage) | _alone(_drive, uri, storage)
        found["copy_mb"] = _size(cache)
        found["stored_mb"] = list_sizes(uri, storage)[TABLE_NAME] / 1e6
    return {name: round(value, 3) for name, value in found.items()}


def _alone(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Call `function` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _write(uri: str, rows: int, storage: Storage) -> dict[str, float]:
    contents = _write_shards(f"{uri}-small", 1, storage)
    table = generated_rows(0, PER_SHARD, contents)
    write_manifest(f"{uri}-small", table, tile_px=TILE_PX, mpp=0.5, ingest="generator", storage=storage)
    contents = _write_shards(uri, SHARDS, storage)
    watch, begun = PeakMemory(), time.perf_counter()
    pieces = (generated_rows(first, min(PIECE, rows - first), contents) for first in range(0, rows, PIECE))
    manifest = write_rows(uri, pieces, tile_px=TILE_PX, mpp=0.5, ingest="generator", storage=storage)
    write_record(manifest.header, f"{uri}/{HEADER_NAME}", storage)
    return {"write_s": time.perf_counter() - begun, "writer_mb": watch.stop_mb()}


def _work(uri: str, storage: Storage) -> dict[str, float]:
    for _ in _open_stream(f"{uri}-small", storage).training_epoch(0, seed=0):
        """Loads the libraries, opens the client and fills the buffers, so that only the manifest's part is left."""
    before, watch, begun = private_bytes(), PeakMemory(), time.perf_counter()
    stream = _open_stream(uri, storage)
    batches = stream.training_epoch(0, seed=0)
    batch = next(batches)
    assert batch.valid.all()
    first_s = time.perf_counter() - begun
    del batch
    gc.collect()
    pa.default_memory_pool().release_unused()
    private, peak_mb = private_bytes(), watch.stop_mb()
    for chunk in stream.manifest.rows.plain["content"].chunks:  # as an epoch of all workers does
        np.frombuffer(chunk.buffers()[1], np.uint64).max()
    return {
        "worker_private_mb": (private - before) / 1e6,
        "node_shared_mb": shared_bytes() / 1e6,
        "first_batch_s": first_s,
        "worker_peak_mb": peak_mb,
    }


def _open_stream(uri: str, storage: Storage) -> TileStream:
    manifest = read_manifest(uri, storage)
    outputs = OutputSpec("classification", CLASSES)
    return TileStream(
        manifest=manifest,
        source=TileSource(uri, manifest.header.digest, Storage()),
        split="train",
        labels=manifest.labels_of(outputs, manifest.select("train")),
        views=Views(32),
        batch_size=BATCH,
        worker=0,
        workers=1,
    )


def _drive(uri: str, storage: Storage) -> dict[str, float]:
    watch = PeakMemory()
    manifest = read_manifest(uri, storage)
    tiles = manifest.select("train")
    manifest.labels_of(OutputSpec("classification", CLASSES), tiles).count(tiles, len(CLASSES))
    check_balance(manifest, "train", "label")
    for split in manifest.header.splits:
        manifest.counts_of(split)
    return {"driver_mb": watch.stop_mb()}


def _write_shards(uri: str, shards: int, storage: Storage) -> pa.Array:
    """Write the shards; return the hashes of their tiles, in order."""
    random, contents = np.random.default_rng(0), []
    for shard in range(shards):
        tiles = []
        for number in range(PER_SHARD):
            pixels = random.integers(0, 256, (TILE_PX, TILE_PX, 3), np.uint8)
            image = simplejpeg.encode_jpeg(pixels, quality=20)
            tiles.append(Tile(f"{shard}-{number}", "s", "c", 0, 0, 0.5, None, image, None))
            contents.append(content_hash(image, None))
        write_shard(f"{uri}/shards/{shard}.parquet", tiles, PER_GROUP, storage)
    return pa.array(contents)


def generated_rows(first: int, count: int, contents: pa.Array) -> pa.Table:
    """Rows of a manifest from `first` on, like those of slides cut one after another; a tenth is held out by case."""
    number = np.arange(first, first + count)
    slide = number // PER_SLIDE
    name = _names("TCGA-{:06d}-01Z-00-DX1", slide)
    x, y = number % PER_SLIDE % 70 * 512, number % PER_SLIDE // 70 * 512
    columns = {
        "tile_id": pc.binary_join_element_wise(name, pa.array(x.astype(str)), pa.array(y.astype(str)), "-"),
        "slide": name,
        "case": _names("TCGA-{:06d}", slide),
        "x": x,
        "y": y,
        "mpp": np.full(count, 0.5),
        "size_px": np.full(count, TILE_PX),
        "label": pa.array(CLASSES).take(pa.array(slide % len(CLASSES))),
        "has_mask": np.zeros(count, bool),
        "split": pa.array(["train", "val", "test"]).take(pa.array(np.clip(slide % 20 - 17, 0, 2))),
        "shard": _names("shards/{}.parquet", number // PER_SHARD % SHARDS),
        "row_group": number % PER_SHARD // PER_GROUP,
        "row": number % PER_GROUP,
        "content": contents.take(pa.array(number % len(contents))),
    }
    return pa.table(columns).select(MANIFEST.names).cast(MANIFEST)


def _names(text: str, numbers: np.ndarray) -> pa.Array:
    different, place = np.unique(numbers, return_inverse=True)
    return pa.array([text.format(number) for number in different.tolist()]).take(pa.array(place))


def private_bytes() -> int:
    """Memory of this process alone: its resident pages that are of no file of the node's copy."""
    return _resident(lambda path: "/shared/" not in path)


def shared_bytes() -> int:
    """Resident pages of the node's copy, which other processes that map it share."""
    return _resident(lambda path: "/shared/" in path)


def _resident(wanted: Callable[[str], bool]) -> int:
    """Private pages of mappings of `wanted` paths, and all pages of those of the node's copy, in bytes."""
    total, path = 0, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            path = words[5] if len(words) > 5 else ""
        elif wanted(path) and words[0] in (("Rss:",) if "/shared/" in path else ("Private_Clean:", "Private_Dirty:")):
            total += 1024 * int(words[1])
    return total


class PeakMemory:
    """The most memory that is of no file, above what there is at the start, looked at every 20 ms."""

    def __init__(self) -> None:
        self._before = self._peak = _anonymous()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self._peak = max(self._peak, _anonymous())

    def stop_mb(self) -> float:
        self._ended.set()
        self._thread.join()
        return (max(self._peak, _anonymous()) - self._before) / 1e6


def _anonymous() -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])


def _walk(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _size(folder: Path) -> float:
    return sum(path.stat().st_size for path in _walk(folder)) / 1e6


def _clear(folder: Path) -> None:
    for path in _walk(folder):
        path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()


if __name__ == "__main__":
    main()
