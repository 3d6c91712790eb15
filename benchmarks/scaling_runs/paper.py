"""A performance model of runs on up to 64 GPUs and 100 million tiles: pure functions of constants, measured or assumed.

A step of n GPUs, one worker each with `batch` tiles, takes

    T(n) = batch * max over resources of t_r(n) + A(n) + C,

where t_r(n) are the seconds that resource r needs per tile of one worker while n workers share it (everything is read
and decoded ahead, so only the slowest counts), A(n) is the all-reduce and C a checkpoint's part, both assumed not to
overlap with anything. The speed is n * batch / T(n) tiles/s.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from histill.stream.open_shards import OPEN_SHARDS

COMPUTE = "GPU"


@dataclass(frozen=True)
class Constants:
    """Constants measured on this machine."""

    tile_bytes: float  # of one encoded tile in the object store
    response_bytes: float  # of its cached response
    ingest_cpu_s: float  # CPU seconds of reading, decoding and batching one tile, its response included
    reads_per_tile: float  # row groups that a worker of 64 reads for each of its tiles
    group_tiles: float  # tiles of a row group
    shard_tiles: float  # tiles of a shard
    requests_per_read: float  # requests for a row group of tiles and that of its responses, shards open
    requests_per_open: float  # requests to open a shard of tiles and that of its responses
    plan_first_s: float  # seconds per tile of the set until an epoch's first batch is planned
    plan_s: float  # seconds of planning per tile that a worker consumes
    manifest_bytes: float  # per tile, in the object store
    manifest_held_bytes: float  # per tile, in each worker's memory, with where the tiles of the split lie
    manifest_peak_bytes: float  # per tile, in each worker's memory while it reads
    manifest_s: float  # seconds per tile to read and check it, and to find where the tiles of the split lie
    gradient_bytes: float  # of the student, float32
    save_s: float  # seconds of a checkpoint on the training thread


@dataclass(frozen=True)
class Assumed:
    """Constants that cannot be measured here. Each is an option of the benchmark, described by its metadata."""

    gpu_tiles_s: float = field(default=2000.0, metadata={"help": "tiles/s that one GPU trains if it never waits"})
    teacher_tiles_s: float = field(default=300.0, metadata={"help": "tiles/s that one GPU answers as the teacher"})
    batch: int = field(default=64, metadata={"help": "tiles of one GPU in one step"})
    gpus_per_node: int = field(default=8, metadata={"help": "GPUs, and workers, of one node"})
    cores_per_gpu: float = field(default=8.0, metadata={"help": "CPU cores that decode for one GPU"})
    node_memory_gb: float = field(default=1024.0, metadata={"help": "memory of one node, GB"})
    network_gbit_s: float = field(default=100.0, metadata={"help": "network of one node, Gbit/s"})
    hop_us: float = field(default=50.0, metadata={"help": "latency of one hop of the all-reduce's ring, us"})
    store_gb_s: float = field(default=25.0, metadata={"help": "what the object store gives to all nodes, GB/s"})
    store_requests_s: float = field(
        default=5500.0, metadata={"help": "requests/s of one prefix; AWS names 5,500 GET/s for S3"}
    )
    store_prefixes: int = field(default=2, metadata={"help": "prefixes; tiles and their responses lie in one each"})
    checkpoint_every: int = field(default=500, metadata={"help": "steps between checkpoints; 500 is the product's"})
    tiles: int = field(default=100_000_000, metadata={"help": "tiles of the set"})
    trials: int = field(default=32, metadata={"help": "trials of the sweep"})
    epochs: int = field(default=16, metadata={"help": "epochs of a trial that goes to its end"})
    reduction: int = field(
        default=2, metadata={"help": "successive halving keeps one in this many; 2 by default there"}
    )
    trial_overhead_s: float = field(
        default=12.3, metadata={"help": "seconds of Tune and Train for a trial (benchmarks/sweep_cost.py)"}
    )


def requests_per_tile(made: Constants, tiles: float) -> float:
    """Requests to the object store per tile that a worker consumes.

    (row groups per tile) * (requests of a read + P(shard not open) * requests to open it); row groups come in a random
    order and a worker keeps the footers of 512 files, half of them of responses: P = 1 - 256 / shards.
    """
    shards = tiles / made.shard_tiles
    shut = max(0.0, 1 - OPEN_SHARDS / 2 / shards)
    return made.reads_per_tile * (made.requests_per_read + shut * made.requests_per_open)


def bytes_per_tile(made: Constants) -> float:
    """Bytes from the object store per tile that a worker consumes: whole row groups, with their responses."""
    return made.reads_per_tile * made.group_tiles * (made.tile_bytes + made.response_bytes)


def seconds_per_tile(made: Constants, given: Assumed, gpus: int) -> dict[str, float]:
    """Seconds that each resource needs for one tile of each worker, t_r(n), by resource.

    GPU: 1 / gpu_tiles_s. Decoding: ingest_cpu_s / cores_per_gpu. Planning: plan_s, one thread. A node's network: bytes
    per tile * workers of the node / its rate. Store, bytes and requests: what a tile needs * n / what the store gives.
    """
    beside = min(gpus, given.gpus_per_node)
    return {
        COMPUTE: 1 / given.gpu_tiles_s,
        "decoding cores": made.ingest_cpu_s / given.cores_per_gpu,
        "planning": made.plan_s,
        "node's network": bytes_per_tile(made) * beside / (given.network_gbit_s * 1e9 / 8),
        "store's bytes": bytes_per_tile(made) * gpus / (given.store_gb_s * 1e9),
        "store's requests": requests_per_tile(made, given.tiles)
        * gpus
        / (given.store_requests_s * given.store_prefixes),
    }


def all_reduce_s(made: Constants, given: Assumed, gpus: int) -> float:
    """Seconds of a ring all-reduce: 2 (n - 1) / n * gradient bytes / bandwidth + 2 (n - 1) * latency.

    Over the nodes' network throughout, also where a node's own links are faster.
    """
    if gpus == 1:
        return 0.0
    carried = 2 * (gpus - 1) / gpus * made.gradient_bytes / (given.network_gbit_s * 1e9 / 8)
    return carried + 2 * (gpus - 1) * given.hop_us * 1e-6


def step_s(made: Constants, given: Assumed, gpus: int) -> float:
    """Seconds of a step: batch * the slowest resource + all-reduce + a checkpoint's part of it."""
    slowest = max(seconds_per_tile(made, given, gpus).values())
    return given.batch * slowest + all_reduce_s(made, given, gpus) + made.save_s / given.checkpoint_every


def tiles_per_s(made: Constants, given: Assumed, gpus: int) -> float:
    """Of all GPUs together: n * batch / T(n)."""
    return gpus * given.batch / step_s(made, given, gpus)


def limit_of(made: Constants, given: Assumed, gpus: int) -> str:
    """The resource that needs the most time for a tile."""
    needs = seconds_per_tile(made, given, gpus)
    return max(needs, key=lambda name: needs[name])


def first_bottleneck(made: Constants, given: Assumed, most: int = 64) -> tuple[int, str] | None:
    """The smallest number of GPUs at which another resource is the bottleneck, and which; None up to `most`."""
    for gpus in range(1, most + 1):
        if (name := limit_of(made, given, gpus)) != COMPUTE:
            return gpus, name
    return None


def used_shares(made: Constants, given: Assumed, gpus: int) -> dict[str, float]:
    """The utilization of each resource by n GPUs that never wait: t_r(n) / t_GPU; above 1 it is a bottleneck."""
    needs = seconds_per_tile(made, given, gpus)
    return {name: seconds / needs[COMPUTE] for name, seconds in needs.items()}


def limits_at(made: Constants, given: Assumed, most: int = 4096) -> dict[str, int | None]:
    """The smallest number of GPUs at which each resource alone would be a bottleneck; None: not up to `most`."""
    shares = {gpus: used_shares(made, given, gpus) for gpus in range(1, most + 1)}
    names = [name for name in shares[1] if name != COMPUTE]
    reached = {name: next((gpus for gpus, used in shares.items() if used[name] > 1), None) for name in names}
    return {COMPUTE: 1} | reached


def epochs_of_sweep(trials: int, epochs: int, reduction: int, *, grace: int = 1) -> int:
    """Epochs of all trials together under successive halving with rungs after grace, grace * reduction, ... epochs.

    Of the trials that reach a rung, one in `reduction` continues. reduction = 1: nothing is stopped.
    """
    if reduction == 1:
        return trials * epochs
    spent, done, rung = 0, 0, grace
    while trials and done < epochs:
        reached = min(rung, epochs)
        spent += trials * (reached - done)
        done, rung = reached, rung * reduction
        trials = math.ceil(trials / reduction)
    return spent


def costs(made: Constants, given: Assumed) -> dict[str, float]:
    """Costs of the tile set besides the steps, in the units of the names' suffixes.

    `manifest_*`: linear in the tiles, in each worker, and for all workers of a node together. `plan_*`: until the
    first batch, and the part of one of 64 workers in an epoch. `cache_*`: responses and the teacher's pass. `sweep_*`:
    GPU hours of the trials' epochs, each on one GPU, with the cache (including its computation) and with a live
    teacher, 1 / student + 1 / teacher seconds per tile.
    """
    tiles, hours = given.tiles, 1 / 3600
    epochs = epochs_of_sweep(given.trials, given.epochs, given.reduction)
    whole = epochs_of_sweep(given.trials, given.epochs, 1)
    student = tiles / tiles_per_s(made, given, 1) * hours
    teacher = tiles / given.teacher_tiles_s * hours
    held, peak = tiles * made.manifest_held_bytes / 1e9, tiles * made.manifest_peak_bytes / 1e9
    return {
        "tiles_tb": tiles * made.tile_bytes / 1e12,
        "manifest_gb": tiles * made.manifest_bytes / 1e9,
        "manifest_read_s": tiles * made.manifest_s,
        "manifest_worker_gb": held,
        "manifest_worker_peak_gb": peak,
        "manifest_node_peak_gb": peak * given.gpus_per_node,
        "manifest_fills_node_at_million_tiles": given.node_memory_gb / given.gpus_per_node / peak * tiles / 1e6,
        "plan_first_batch_s": tiles * made.plan_first_s,
        "plan_epoch_of_64_s": tiles / 64 * made.plan_s,
        "cache_tb": tiles * made.response_bytes / 1e12,
        "cache_gpu_h": teacher,
        "sweep_epochs": epochs,
        "sweep_cached_gpu_h": teacher + epochs * student,
        "sweep_live_gpu_h": epochs * (student + teacher),
        "sweep_cached_unstopped_gpu_h": teacher + whole * student,
        "sweep_live_unstopped_gpu_h": whole * (student + teacher),
        "sweep_overhead_h": given.trials * given.trial_overhead_s * hours,
    } | {f"epoch_on_{gpus}_h": tiles / tiles_per_s(made, given, gpus) * hours for gpus in (1, 8, 64)}


def curve(made: Constants, given: Assumed, gpus: Sequence[int]) -> list[dict[str, Any]]:
    """For each number of GPUs: tiles/s, ms per step, the all-reduce's share, the efficiency and the limit."""
    alone = tiles_per_s(made, given, 1)
    return [
        {
            "gpus": each,
            "tiles_per_s": tiles_per_s(made, given, each),
            "step_ms": step_s(made, given, each) * 1e3,
            "all_reduce": all_reduce_s(made, given, each) / step_s(made, given, each),
            "efficiency": tiles_per_s(made, given, each) / each / alone,
            "limit": limit_of(made, given, each),
        }
        for each in gpus
    ]


def options() -> list[tuple[str, Any, str]]:
    """Name, default and meaning of every assumed constant."""
    return [(each.name, each.default, each.metadata["help"]) for each in fields(Assumed)]
