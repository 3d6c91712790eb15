"""Tiles from a local disk to batches: decoded by the machine's cores, or by the card; alone, and feeding a step."""

import importlib.util
import io
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.gpu_runs.card import Row, explain, seconds_of, wait_for
from benchmarks.gpu_runs.steps import TrainingStep
from benchmarks.loaders.tiles import SIDE_PX, make_tiles

GROUP, SHARDS, SHARD_FOLDER = 64, 16, "shards"
WAITING = 0.9
"""A fed step that reaches less than this fraction of its speed alone is limited by data."""
Decode = Callable[[memoryview, np.ndarray], None]


def write_shards(folder: Path, distinct: int, tiles: int) -> None:
    """`tiles` JPEG tiles of 512 px in SHARDS Parquet files, of `distinct` different ones; dropped from memory."""
    images = [path.read_bytes() for path in make_tiles(folder / "jpeg", distinct, 0)]
    (folder / SHARD_FOLDER).mkdir()
    each = -(-tiles // SHARDS)
    for number in range(SHARDS):
        rows = range(number * each, min(tiles, (number + 1) * each))
        part = {"tile_id": [str(row) for row in rows], "image": [images[row % distinct] for row in rows]}
        path = folder / SHARD_FOLDER / f"{number:02d}.parquet"
        pq.write_table(pa.table(part), path, row_group_size=GROUP, compression="none", use_dictionary=False)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def shards_in(folder: Path) -> list[Path]:
    return sorted((folder / SHARD_FOLDER).glob("*.parquet"))


def decoder() -> tuple[str, Decode]:
    """The fastest decoder that is installed, by its name; it writes a tile at the side of `out`, uint8 [s, s, 3]."""
    if importlib.util.find_spec("simplejpeg") and importlib.util.find_spec("cv2"):
        return "simplejpeg", _by_simplejpeg
    return "Pillow", _by_pillow


def _by_simplejpeg(jpeg: memoryview, out: np.ndarray) -> None:
    import cv2
    import simplejpeg

    side = out.shape[0]
    if SIDE_PX % side == 0:
        simplejpeg.decode_jpeg(jpeg, min_height=side, min_width=side, min_factor=1, buffer=out)
        return
    larger = simplejpeg.decode_jpeg(jpeg, min_height=side, min_width=side, min_factor=1)
    cv2.resize(larger, (side, side), dst=out, interpolation=cv2.INTER_AREA)


def _by_pillow(jpeg: memoryview, out: np.ndarray) -> None:
    from PIL import Image

    side = out.shape[0]
    picture = Image.open(io.BytesIO(jpeg))
    picture.draft("RGB", (side, side))  # the smallest DCT scale that is at least as large
    out[:] = picture if picture.size == (side, side) else picture.resize((side, side), Image.Resampling.BOX)


def by_threads(shards: list[Path], side: int, batch: int, threads: int) -> Iterator[Tensor]:
    """Batches, uint8 [B, 3, side, side], as histill makes them: a process whose threads decode into whole batches."""
    _, decode = decoder()
    waiting: deque[tuple[np.ndarray, list[Any]]] = deque()

    def decode_part(part: list[memoryview], out: np.ndarray) -> None:
        for jpeg, view in zip(part, out, strict=True):
            decode(jpeg, view)

    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(4) as readers:
        images = _images(shards, readers)
        size = max(1, batch // (2 * threads))
        while len(part := list(islice(images, batch))) == batch:
            out = np.empty((batch, side, side, 3), np.uint8)
            jobs = [pool.submit(decode_part, part[at : at + size], out[at : at + size]) for at in range(0, batch, size)]
            waiting.append((out, jobs))
            if len(waiting) > 3:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())


def _finished(out: np.ndarray, jobs: list[Any]) -> Tensor:
    for job in jobs:
        job.result()
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def _images(shards: list[Path], readers: ThreadPoolExecutor) -> Iterator[memoryview]:
    """The encoded tiles, row group by row group, read eight row groups ahead."""
    groups = ((path, group) for path in shards for group in range(pq.read_metadata(path).num_row_groups))
    reading: deque[Any] = deque(readers.submit(_read, *each) for each in islice(groups, 8))
    while reading:
        table = reading.popleft().result()
        reading.extend(readers.submit(_read, *each) for each in islice(groups, 1))
        yield from _bytes_of(table)


def _read(path: Path, group: int) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=["image"], use_threads=False)


def _bytes_of(table: pa.Table) -> Iterator[memoryview]:
    return (memoryview(image.as_buffer()).cast("B") for image in table["image"].combine_chunks())


class _Decoded(IterableDataset[Tensor]):
    """The batches of this worker's shards, for a DataLoader."""

    def __init__(self, shards: list[Path], side: int, batch: int) -> None:
        self.shards, self.side, self.batch = shards, side, batch

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        assert worker is not None
        _, decode = decoder()
        out, filled = torch.empty(self.batch, self.side, self.side, 3, dtype=torch.uint8), 0
        for path in self.shards[worker.id :: worker.num_workers]:
            for group in range(pq.read_metadata(path).num_row_groups):
                for image in _bytes_of(_read(path, group)):
                    decode(image, out[filled].numpy())
                    filled += 1
                    if filled == self.batch:
                        yield out.permute(0, 3, 1, 2)
                        out, filled = torch.empty_like(out), 0


def by_processes(shards: list[Path], side: int, batch: int, workers: int) -> Iterator[Tensor]:
    """The same by a DataLoader with `workers` processes."""
    workers = min(workers, len(shards))
    yield from DataLoader(
        _Decoded(shards, side, batch), batch_size=None, num_workers=workers, multiprocessing_context="forkserver"
    )


def by_histill(folder: Path, side: int, batch: int, threads: int) -> Iterator[Tensor]:
    """Batches of histill's own stream, shuffled and verified. Raises ImportError where its dependencies are missing."""
    from benchmarks.gpu_runs.own_stream import read_epoch

    yield from read_epoch(folder, shards_in(folder), side, batch, threads)


def measure_streams(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Tiles/s and CPU of this machine's cores, for what students and teachers see."""
    cores, batch = len(os.sched_getaffinity(0)), 16 if quick else 256
    shards, (name, _) = shards_in(folder), decoder()
    ways: dict[str, Callable[[int], Iterator[Tensor]]] = {
        f"threads, {name}": lambda side: by_threads(shards, side, batch, cores),
        f"processes, {name}": lambda side: by_processes(shards, side, batch, cores),
        "histill": lambda side: by_histill(folder, side, batch, cores),
    }
    for side in (112,) if quick else (112, 224, SIDE_PX):
        for way, batches in ways.items():
            yield {"what": f"stream {side} px, {way}", "cores": cores} | _drained(batches, side)


def _drained(batches: Callable[[int], Iterator[Tensor]], side: int) -> Row:
    """Tiles/s from the second batch on, so that the start of threads, processes and connections is left out."""
    try:
        stream = batches(side)
        first = time.perf_counter()
        next(stream)
        begun, cpu, tiles = time.perf_counter(), time.process_time(), 0
        for batch in stream:
            tiles += len(batch)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    except Exception as error:  # one way that fails leaves the others
        return {"failed": explain(error)}
    if not tiles:
        return {"failed": "there is only one batch"}
    return {
        "tiles_per_s": round(tiles / seconds, 1),
        "cpu_ms": round(1000 * cpu / tiles, 3),  # of this process; workers of a DataLoader are not in it
        "first_batch_s": round(begun - first, 2),
        "limit": "data",
    }


def decode_on_card(images: list[Tensor], side: int, device: torch.device) -> Tensor:
    """Decode JPEG bytes by nvJPEG and average to uint8 [B, 3, side, side] on the card."""
    from torchvision.io import ImageReadMode, decode_jpeg

    tiles = torch.stack(decode_jpeg(images, mode=ImageReadMode.RGB, device=device))
    if side == SIDE_PX:
        return tiles
    return F.interpolate(tiles.half(), (side, side), mode="area").round().to(torch.uint8)


def encoded_batches(shards: list[Path], batch: int) -> Iterator[list[Tensor]]:
    """Batches of encoded tiles, each a uint8 tensor, without end."""
    with ThreadPoolExecutor(4) as readers:
        images = _images(list(islice(cycle(shards), 1000 * len(shards))), readers)
        while True:
            yield [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in islice(images, batch)]


def measure_card_decode(folder: Path, device: torch.device, *, quick: bool) -> Iterator[Row]:
    """Tiles/s of torchvision's CUDA decoder at several batch sizes, with and without averaging to a student's side."""
    for batch, side in ((4, 112),) if quick else ((64, SIDE_PX), (256, SIDE_PX), (256, 224), (256, 112)):
        row: Row = {"what": f"decode on the card, {side} px", "batch": batch}
        try:
            images = next(encoded_batches(shards_in(folder), batch))
            seconds = seconds_of(partial(decode_on_card, images, side, device), device, 0.01 if quick else 0.5)
        except Exception as error:  # no nvJPEG in this build, or no card
            yield row | {"failed": explain(error)}
            return
        yield row | {"tiles_per_s": round(batch / seconds, 1), "ms": round(1000 * seconds, 2), "limit": "decode"}


def measure_fed_steps(folder: Path, px: int, device: torch.device, *, quick: bool) -> Iterator[Row]:
    """The training step alone, fed by the cores and fed by the card's decoder: what the whole reaches, and what limits.

    Eager, channels last. A step that is fed is as fast as one that is not, or it waits for data.
    """
    name, px, batch, least_s = ("csat_tiny", 64, 4, 0.2) if quick else ("csat", px, 256, 6.0)
    cores, shards = len(os.sched_getaffinity(0)), shards_in(folder)
    step = TrainingStep(name, px, batch, device)
    alone = batch / seconds_of(step, device, 0.01 if quick else 1.0)
    yield {"what": f"{name} {px} px alone", "batch": batch, "tiles_per_s": round(alone, 1)}

    def by_cores() -> Iterator[Tensor]:
        while True:
            for tiles in by_threads(shards, px, batch, cores):
                yield (tiles.pin_memory() if device.type == "cuda" else tiles).to(device, non_blocking=True)

    def by_card() -> Iterator[Tensor]:
        for images in encoded_batches(shards, batch):
            yield decode_on_card(images, px, device)

    for way, feed in {f"{cores} cores": by_cores, "the card's decoder": by_card}.items():
        row: Row = {"what": f"{name} {px} px fed by {way}", "batch": batch}
        try:
            fed = _feed(step, feed(), device, least_s) * batch
        except Exception as error:  # no nvJPEG in this build, or no card
            yield row | {"failed": explain(error)}
            continue
        limit = "data" if fed < WAITING * alone else "step"
        yield row | {"tiles_per_s": round(fed, 1), "of_alone": round(fed / alone, 3), "limit": limit}


def _feed(step: TrainingStep, tiles: Iterator[Tensor], device: torch.device, least_s: float) -> float:
    """Steps per second over `least_s`, after the first two."""
    for batch in islice(tiles, 2):
        step.learn(batch)
    wait_for(device)
    steps, begun = 0, time.perf_counter()
    for batch in tiles:
        step.learn(batch)
        steps += 1
        if steps % 8 == 0 or device.type != "cuda":
            wait_for(device)
            if time.perf_counter() - begun > least_s:
                break
    wait_for(device)
    return steps / (time.perf_counter() - begun)
