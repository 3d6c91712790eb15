"""Batch prediction compared with a bare loop with the same model, decoder and cores.

    python -m benchmarks.predict_tiles [--tiles 6144] [--rounds 3] [--processors 2] [--quick]

H&E-like tiles of 512 px are on a local S3 server; the model is a CSAT classifier that sees them at 112 px, with random
weights. histill is `predict`, as called by `jobs/predict_tiles.py`, on its own Ray head, with one actor per
core. The bare loop is one process per core that reads the row groups of its shards, decodes each tile into a batch
and runs the model, and writes nothing. Both are timed on a short and on a long set and the figures are differences, so
that start-up cancels; they take turns, and the medians of the rounds are compared.

Prints a line per measurement and as its last line one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

TILE_PX, SEEN_PX, MPP, BATCH = 512, 112, 0.25, 32
PER_SHARD, PER_GROUP = 256, 64
BUCKET = "predicting"


@dataclass(frozen=True)
class Bench:
    """The setup shared by all measurements."""

    sets: dict[str, str]  # short and long -> URI
    tiles: dict[str, int]
    model: str
    processors: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=6144, help="of the long set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processors", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="one round of few tiles; its figure means little")
    chosen = parser.parse_args()
    tiles = {"short": PER_SHARD * 2, "long": chosen.tiles}
    rounds = chosen.rounds
    if chosen.quick:
        tiles, rounds = {"short": PER_SHARD * 2, "long": PER_SHARD * 6}, 1
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="predict-tiles-") as name, ExitStack() as stack:
        from histill.cluster.connect import connect_cluster
        from histill.local.ray_head import ray_head
        from histill.local.s3 import s3_server

        server = stack.enter_context(s3_server(Path(name, "s3"), BUCKET))
        os.environ |= server.environment()
        bench = prepared(Path(name), tiles, chosen.processors)
        head = ray_head(Path(name, "ray"), cpus=chosen.processors, env=server.environment(), token_auth=False)
        os.environ |= stack.enter_context(head).environment()
        stack.enter_context(connect_cluster())
        rates: dict[str, list[float]] = {"bare": [], "histill": []}
        for number in range(rounds):
            for kind, run in (("bare", bare), ("histill", ours)):
                seconds = {size: run(bench, size, number) for size in tiles}
                rate = (tiles["long"] - tiles["short"]) / (seconds["long"] - seconds["short"])
                rates[kind].append(rate)
                shown = {size: round(value, 2) for size, value in seconds.items()}
                print(
                    json.dumps({"kind": kind, "round": number, "tiles_per_s": round(rate, 1), "s": shown}), flush=True
                )
    medians = {kind: statistics.median(each) for kind, each in rates.items()}
    over = medians["histill"] / medians["bare"]
    print(json.dumps({"over_bare": round(over, 4)} | {kind: round(rate, 1) for kind, rate in medians.items()}))


def prepared(work: Path, tiles: dict[str, int], processors: int) -> Bench:
    """Both tile sets and the model, on the server."""
    import torch

    from benchmarks.loaders.tiles import make_tiles
    from histill.artifacts import model_folder
    from histill.artifacts.model_folder import ModelCard, build
    from histill.config.common import Storage
    from histill.testing.tile_sets import write_tile_set
    from histill.tiles.shards import Tile

    files = make_tiles(work / "jpeg", min(512, max(tiles.values())), 0)
    sets = {}
    for size, count in tiles.items():
        made = [
            Tile(f"{size}-{number}", f"{number // 64}", "case", number % 8, number // 8, MPP, None,
                 files[number % len(files)].read_bytes(), None)
            for number in range(count)
        ]  # fmt: skip
        sets[size] = f"s3://{BUCKET}/{size}"
        write_tile_set(
            sets[size], made, ["test"] * count, tile_px=TILE_PX, per_shard=PER_SHARD, per_group=PER_GROUP,
            storage=Storage(),
        )  # fmt: skip
    card = ModelCard(
        kind="classification", encoder="csat", decoder_channels=(), classes=("stroma", "tumour"), mean=(0.7, 0.5, 0.7),
        std=(0.2, 0.2, 0.2), tile_px=TILE_PX, tile_mpp=MPP, size_px=SEEN_PX, tiles_digest="none", train_cases=(),
        histill="0",
    )  # fmt: skip
    torch.manual_seed(0)
    folder = work / "model"
    folder.mkdir()
    model_folder.save(str(folder), build(card), card)
    model_folder.copy(str(folder), f"s3://{BUCKET}/model", Storage())
    return Bench(sets, tiles, f"s3://{BUCKET}/model", processors)


def ours(bench: Bench, size: str, number: int) -> float:
    """Seconds of `predict`."""
    from histill.config.common import Workers
    from histill.config.predict_tiles import PredictConfig
    from histill.predict.predict import predict

    begun = time.monotonic()
    found = predict(
        PredictConfig(
            model=bench.model, tiles=bench.sets[size], output=f"s3://{BUCKET}/out-{number}", heatmaps=False,
            batch_size=BATCH, workers=Workers(count=bench.processors, cpus=1.0),
        )
    )  # fmt: skip
    assert (found.tiles, found.reused) == (bench.tiles[size], False)
    return time.monotonic() - begun


def bare(bench: Bench, size: str, number: int) -> float:
    """Seconds of the bare loop in one process per core, each with its part of the shards."""
    from histill.config.common import Storage
    from histill.tiles.manifest_file import read_manifest
    from histill.tiles.shards import shards_of

    begun = time.monotonic()
    uri = bench.sets[size]
    shards = [f"{uri}/{shard.shard}".removeprefix("s3://") for shard in shards_of(read_manifest(uri, Storage()))]
    parts = [shards[place :: bench.processors] for place in range(bench.processors)]
    with ProcessPoolExecutor(bench.processors, mp_context=get_context("spawn")) as pool:
        seen = sum(pool.map(loop, parts, [bench.model] * len(parts)))
    if seen != bench.tiles[size]:
        sys.exit(f"the bare loop saw {seen} tiles of {bench.tiles[size]}")
    return time.monotonic() - begun


def loop(shards: Sequence[str], model: str) -> int:
    """Read, decode and predict; return the number of tiles."""
    import numpy as np
    import pyarrow.parquet as pq
    import torch

    from benchmarks.loaders.target import filesystem
    from histill.artifacts.model_folder import load
    from histill.config.common import Storage
    from histill.stream.decode import decode_image, downscale_area, reduction_for

    torch.set_num_threads(1)
    network, _, _ = load(model, Storage())
    store, buffer = filesystem(), np.empty((BATCH, SEEN_PX, SEEN_PX, 3), np.uint8)
    tiles = torch.from_numpy(buffer).permute(0, 3, 1, 2)
    reduction, seen = reduction_for(TILE_PX, SEEN_PX), 0
    with torch.inference_mode():
        for path in shards:
            with store.open_input_file(path) as file:
                parquet = pq.ParquetFile(file, pre_buffer=True)
                for group in range(parquet.num_row_groups):
                    images = parquet.read_row_group(group, columns=["image"])["image"].to_pylist()
                    for start in range(0, len(images), BATCH):
                        for slot, image in enumerate(images[start : start + BATCH]):
                            buffer[slot] = downscale_area(decode_image(image, TILE_PX, reduction), SEEN_PX)
                        network(tiles.float()).softmax(1)
                        seen += min(BATCH, len(images) - start)
    return seen


if __name__ == "__main__":
    main()
