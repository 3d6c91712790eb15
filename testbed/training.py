"""Train and cache responses in this process, without Ray: one model folder per run."""

from math import ceil
from pathlib import Path
from typing import Any

import torch

from histill.artifacts.model_folder import FINISHED_NAME
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.config.load import validate
from histill.config.runs import RunConfig
from histill.storage.control import exists
from histill.storage.uris import join
from histill.stream.cached_views import CachedViews
from histill.teachers.cache import HEADER_NAME, address, finish_cache
from histill.teachers.shard_responses import ResponseJob, write_shard_responses
from histill.teachers.teacher import load_teacher
from histill.tiles.manifest import Manifest
from histill.tiles.shards import shards_of
from histill.tiles.subsample import subsample_cases
from histill.train.launch import train_run
from histill.train.prepare import prepare_run
from histill.train.run_folder import run_uri

STORAGE = Storage()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FRESH_HEAD = {"head": "fresh", "batch_norm": "trained"}  # a fine-tuning that trains all from the first step on
COLORS = {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "stain": 0.05}


def run(kind: type[RunConfig], keys: dict[str, Any]) -> str:
    """Train to the end in this process, resuming an interrupted run, or keep the finished one; its folder."""
    config = validate(kind, keys | {"workers": {**keys.get("workers", {}), "count": 0}}, "the benchmark")
    uri = run_uri(config)
    if not exists(join(uri, FINISHED_NAME), STORAGE):
        train_run(prepare_run(config), lambda *_, **__: None)
    return uri


def keys_of(
    name: str,
    runs: Path,
    tiles: Manifest,
    seed: int,
    *,
    batch: int,
    epochs: int,
    lr: float,
    window_px: int | None = None,
) -> dict[str, Any]:
    """The keys that all runs of the comparison share; `window_px` is the side of their crops, None for whole tiles."""
    return {
        "name": name,
        "runs": str(runs),
        "seed": seed,
        "data": {
            "tiles": tiles.uri, "batch_size": batch, "seed": seed, "balance": None,
            "augment": COLORS | {"crop_px": window_px}, "read_threads": 1, "decode_threads": 1,
        },
        "optimizer": {"epochs": epochs, "lr": lr, "ema": 0.0},
        "validation": {"keep": "last", "every_steps": 1},
        "workers": {"gpus": int(DEVICE.type == "cuda")},
        "checkpoint_every": 10**9,
    }  # fmt: skip


def epochs_for(steps: int, tiles: Manifest, batch: int, fraction: float = 1.0, seed: int = 0) -> int:
    """The number of passes over the training tiles that comes closest to `steps`."""
    cases = subsample_cases(tiles, "train", fraction, seed) if fraction < 1 else None
    return max(1, round(steps / ceil(len(tiles.rows_of("train", cases)) / batch)))


def responses(teacher: str | dict[str, Any], tiles: Manifest, out: Path, **changes: Any) -> str:
    """Cache responses like `jobs/cache_responses.py`, without Ray; return the cache's folder.

    `teacher` is a model folder or run, or the keys of another kind of teacher.
    """
    keys = {
        "tiles": tiles.uri,
        "teacher": {"model": teacher} if isinstance(teacher, str) else teacher,
        "output": str(out),
        "workers": {"gpus": int(DEVICE.type == "cuda")},
    } | changes
    config = validate(CacheConfig, keys, "the benchmark")
    made = load_teacher(config.teacher, tiles.header.mpp, STORAGE, gpu=DEVICE.type == "cuda")
    views = config.views, config.seed, config.augment
    folder = join(config.output, address(made.digest, tiles.header.digest, *views, config.layer))
    if exists(join(folder, HEADER_NAME), STORAGE):
        return folder
    cached = CachedViews(folder, made.outputs, *views)
    job = ResponseJob(config, cached)
    undecodable = sum(write_shard_responses(made, tiles, shard, job).count(b"") for shard in shards_of(tiles))
    finish_cache(job, made, tiles, undecodable)
    return cached.uri
