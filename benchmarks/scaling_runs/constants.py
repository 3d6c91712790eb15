"""The constants of the model that can be measured here: manifest, plan, stream, all with the product's own code."""

import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.scaling_runs.paper import Constants
from benchmarks.scaling_runs.workloads import Workload, write_tiles
from histill.config.common import Storage
from histill.config.ingest_tiles import IngestConfig
from histill.local.s3 import s3_server
from histill.stream.cached_views import CachedViews
from histill.stream.index import SampleIndex
from histill.stream.plan import EpochPlan, plan_steps
from histill.stream.read import ShardReader, TileSource
from histill.stream.responses import decode_levels
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.teachers.classical import ClassicalTeacher
from histill.tiles.manifest import read_header
from histill.tiles.manifest_file import read_manifest, write_manifest
from histill.tiles.schema import MANIFEST
from testbed.fault_proxy import fault_proxy

PER_GROUP, PER_SHARD = (IngestConfig.model_fields[name].default for name in ("rows_per_group", "rows_per_shard"))
WORKERS, BATCH, VIEW_PX = 64, 64, 224
TYPICAL = Workload("typical", "", (), 512, VIEW_PX, False, True, 0, 0, 0, 0)  # JPEG tiles of 512 px
_SPLIT = "train"
_PLAN_STEPS = 400


def manifest_costs(sizes: Sequence[int]) -> list[dict[str, float]]:
    """Bytes, seconds and memory of manifests with `sizes` generated rows, each in separate processes, through S3."""
    with (
        tempfile.TemporaryDirectory(prefix="scaling-manifest-") as folder,
        s3_server(Path(folder), "manifests") as server,
        patch.dict(os.environ, server.environment()),
    ):
        rows = []
        for tiles in sizes:
            uri = f"s3://{server.bucket}/{tiles}"
            rows.append({"tiles": tiles} | _alone(_write, uri, tiles) | _alone(_read, uri))
        return rows


def _alone(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Call `function` in a fresh process, so that memory is measured separately."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _write(uri: str, tiles: int) -> dict[str, float]:
    table = generated_rows(tiles)
    before, begun = resident_bytes(), time.perf_counter()
    write_manifest(uri, table, tile_px=512, mpp=0.5, ingest="generator", storage=Storage())
    return {"write_s": time.perf_counter() - begun, "write_peak_bytes": peak_bytes() - before}


def _read(uri: str) -> dict[str, float]:
    read_header(uri, Storage())  # loads the libraries
    before, begun = resident_bytes(), time.perf_counter()
    manifest = read_manifest(uri, Storage())
    read_s = time.perf_counter() - begun
    places = SampleIndex.of(manifest, _SPLIT)
    places_s = time.perf_counter() - begun - read_s
    peak = peak_bytes() - before
    pa.default_memory_pool().release_unused()
    held = resident_bytes() - before
    assert len(places.tiles) == manifest.header.tiles
    return {
        "stored_bytes": _stored(uri), "read_s": read_s, "places_s": places_s, "held_bytes": held, "peak_bytes": peak,
    }  # fmt: skip


def _stored(uri: str) -> float:
    from histill.storage.filesystems import arrow_filesystem
    from histill.tiles.manifest_file import TABLE_NAME

    filesystem, path = arrow_filesystem(f"{uri}/{TABLE_NAME}", Storage())
    return float(filesystem.get_file_info(path).size)


def generated_rows(tiles: int) -> pa.Table:
    """Rows like those from an ingest of slides with 5,000 tiles each; contents are random digests."""
    number = np.arange(tiles)
    slides = pa.array([f"TCGA-{slide:06d}-01Z-00-DX1" for slide in range(tiles // 5000 + 1)])
    shards = pa.array([f"shards/TCGA-{shard // 5:06d}-{shard % 5:04d}.parquet" for shard in range(tiles // 1000 + 1)])
    slide = slides.take(pa.array(number // 5000))
    x, y = number % 5000 % 70 * 512, number % 5000 // 70 * 512
    names = [slide, pa.array(x.astype(str)), pa.array(y.astype(str)), "-"]
    digits = np.random.default_rng(0).bytes(16 * tiles).hex().encode()
    ends = np.arange(0, len(digits) + 1, 32, dtype=np.int32)
    content = pa.StringArray.from_buffers(tiles, pa.py_buffer(ends), pa.py_buffer(digits))
    constant = {"mpp": 0.5, "size_px": 512, "label": None, "has_mask": False, "split": _SPLIT}
    columns = {
        "tile_id": pc.binary_join_element_wise(*names),
        "slide": slide,
        "case": slide,
        "x": x,
        "y": y,
        "shard": shards.take(pa.array(number // 1000)),
        "row_group": number % 1000 // PER_GROUP,
        "row": number % 1000 % PER_GROUP,
        "content": content,
    } | {name: pa.repeat(pa.scalar(value, MANIFEST.field(name).type), tiles) for name, value in constant.items()}
    return pa.table(columns).select(MANIFEST.names).cast(MANIFEST)


def resident_bytes() -> int:
    """This process's current resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_bytes() -> int:
    """This process's peak memory so far; getrusage would include its parent's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def plan_costs(tiles: int) -> dict[str, float]:
    """Seconds and memory of an epoch's plan of `tiles` tiles, for a single worker and for one of 64."""
    return {"tiles": tiles} | _alone(_plan, tiles, 1, "alone") | _alone(_plan, tiles, WORKERS, "of_64")


def _plan(tiles: int, workers: int, name: str) -> dict[str, float]:
    starts = np.append(np.arange(0, tiles, PER_GROUP), tiles)
    before, begun = resident_bytes(), time.perf_counter()
    batch = BATCH * workers
    steps = plan_steps(EpochPlan(starts, batch, 0, 0, max(4096, 64 * batch)), 0, workers)
    next(steps)
    first_s, begun, count = time.perf_counter() - begun, time.perf_counter(), 0
    for _ in islice(steps, _PLAN_STEPS):
        count += 1
    each = (time.perf_counter() - begun) / count / BATCH
    return {f"first_s_{name}": first_s, f"s_per_tile_{name}": each, f"memory_bytes_{name}": peak_bytes() - before}


def reads_per_tile(tiles: int = 1_000_000) -> float:
    """Row groups that one of 64 workers reads per tile, over a whole epoch: at least 1 / 64."""
    starts = np.append(np.arange(0, tiles, PER_GROUP), tiles)
    batch = BATCH * WORKERS
    opened = own = 0
    for step in plan_steps(EpochPlan(starts, batch, 0, 0, 64 * batch), 0, WORKERS):
        opened += len(np.unique(step.opened // PER_GROUP))
        own += int((step.entries >= 0).sum())
    return opened / own


def stream_costs(pictures: Sequence[np.ndarray], batches: int) -> dict[str, float]:
    """Bytes, requests and CPU of JPEG tiles of 512 px and their cached responses, read from a real S3 server."""
    storage = Storage()
    with (
        tempfile.TemporaryDirectory(prefix="scaling-stream-") as folder,
        s3_server(Path(folder), "stream") as server,
        patch.dict(os.environ, server.environment()),
    ):
        uri = f"s3://{server.bucket}/{TYPICAL.folder}"
        responses = write_tiles(TYPICAL, pictures, uri, storage, per_group=PER_GROUP)
        manifest = read_manifest(uri, storage)
        source = TileSource(
            uri, manifest.header.digest, storage, responses=CachedViews(responses, ClassicalTeacher(0.5).outputs)
        )
        stream = TileStream(
            manifest=manifest, source=source, split=_SPLIT, views=Views(VIEW_PX), batch_size=BATCH, worker=0, workers=1,
            buffer_tiles=4 * BATCH, threads=1, read=ShardReader(2),
        )  # fmt: skip
        found = {"ingest_cpu_s": _cpu_of(stream, batches)}
        places = SampleIndex.at(manifest, np.arange(len(pictures)))  # the rows after these repeat them
        reads = places.reads(np.arange(len(pictures)))
        with fault_proxy(server.endpoint) as proxy:
            counted, reader = replace(source, storage=Storage(endpoint=proxy.endpoint)), ShardReader(1)
            list(reader(counted, reads[:1]))  # opens the indexes of both sets
            counts = [proxy.counts["requests"]]
            for _ in range(2):  # the shards are open the second time, if any had to be
                tables = list(reader(counted, reads))
                counts.append(proxy.counts["requests"])
        first, second = np.diff(counts).tolist()
        images = [image.as_py() for table in tables for image in table["image"]]
        answers = [answer.as_py() for table in tables for answer in table["response"]]
        begun = time.process_time()
        for answer in answers:
            decode_levels(answer, 1, TYPICAL.tile_px)
        return found | {
            "response_decode_s": (time.process_time() - begun) / len(answers),
            "tile_bytes": sum(map(len, images)) / len(images),
            "response_bytes": sum(map(len, answers)) / len(answers),
            "requests_per_read": second / len(reads),
            "requests_per_open": (first - second) / len({read.shard for read in reads}),
        }


def _cpu_of(stream: TileStream, batches: int) -> float:
    """CPU seconds per tile of the whole stream, all threads, without the first batches."""
    skipped, tiles, begun = 4, 0, 0.0
    for number, batch in enumerate(stream.training_epoch(0, seed=0)):
        if number == skipped:
            begun = time.process_time()
        elif number > skipped:
            tiles += int(batch.valid.sum())
        if number == skipped + batches:
            break
    return (time.process_time() - begun) / tiles


def raw_constants(pictures: Sequence[np.ndarray], say: Callable[[str], None], *, quick: bool) -> dict[str, Any]:
    """All raw measurements; `quick`: smaller sets, with less meaningful figures."""
    manifest = []
    for tiles in (10_000, 100_000) if quick else (1_000_000, 4_000_000):
        manifest += manifest_costs([tiles])
        say(f"manifest of {tiles:,} tiles: {manifest[-1]['read_s']:.2f} s to read")
    plan = []
    for tiles in (1_000_000,) if quick else (1_000_000, 10_000_000):
        plan.append(plan_costs(tiles))
        say(f"plan of {tiles:,} tiles: first batch after {plan[-1]['first_s_of_64']:.3f} s")
    stream = stream_costs(pictures, 4 if quick else 24)
    say(f"stream: {stream['ingest_cpu_s'] * 1e3:.2f} CPU ms a tile")
    return {"manifest": manifest, "plan": plan, "reads_per_tile": reads_per_tile(), "stream": stream}


def constants_of(raw: dict[str, Any], measured: Mapping[str, Mapping[int, Mapping[str, float]]]) -> Constants:
    """The model's constants.

    Costs per tile are the slope between the two sizes measured, except the plan's first batch, whose time is
    divided by the tiles of the largest. Gradients and checkpoint are CSAT's, the checkpoint with the CPU share of one
    node.
    """
    small, large = raw["manifest"]
    stream, plan = raw["stream"], raw["plan"][-1]
    student = next(iter(measured["compute"].values()))

    def slope(name: str) -> float:
        return max(0.0, (large[name] - small[name]) / (large["tiles"] - small["tiles"]))

    return Constants(
        tile_bytes=stream["tile_bytes"],
        response_bytes=stream["response_bytes"],
        ingest_cpu_s=stream["ingest_cpu_s"],
        reads_per_tile=raw["reads_per_tile"],
        group_tiles=PER_GROUP,
        shard_tiles=PER_SHARD,
        requests_per_read=stream["requests_per_read"],
        requests_per_open=stream["requests_per_open"],
        plan_first_s=plan["first_s_of_64"] / plan["tiles"],
        plan_s=plan["s_per_tile_of_64"],
        manifest_bytes=slope("stored_bytes"),
        manifest_held_bytes=slope("held_bytes"),
        manifest_peak_bytes=slope("peak_bytes"),
        manifest_s=slope("read_s") + slope("places_s"),
        gradient_bytes=student["gradient_bytes"],
        save_s=student["save_ms"] / 1e3,
    )
