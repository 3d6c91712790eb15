"""Fixed-size batches: encoded rows are gathered in the plan's order and decoded here, next to their consumer."""

import logging
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch

from histill.errors import InputError
from histill.stream import geometry, responses
from histill.stream.decode import CorruptTile, decode_image, decode_mask
from histill.tiles.manifest import Manifest

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class TileBatch:
    """One worker's part of one global batch."""

    tiles: torch.Tensor  # uint8 [B, 3, H, W], channels last in memory
    valid: torch.Tensor  # bool [B]; False: padding, or a tile that could not be decoded
    index: torch.Tensor  # int64 [B], rows of the manifest, -1 for padding
    mask: torch.Tensor | None  # int64 [B, H, W] class indices
    response: torch.Tensor | None  # float32 [B, K - 1, H, W] logits relative to class 0
    planned: int  # tiles in the whole global batch, over all workers


@dataclass(frozen=True)
class Decoding:
    """How rows become a batch."""

    tile_px: int
    masks: bool
    response_channels: int  # 0: no responses
    threads: int
    max_corrupt: int
    flips_seed: int | None  # None: tiles as they are
    epoch: int = 0


def decoded_batches(
    tables: Iterable[pa.Table], plan: np.ndarray, planned: np.ndarray, manifest: Manifest, how: Decoding
) -> Iterator[TileBatch]:
    """The batches of `plan` (int64 [steps, B]) from `tables`, which bring its rows in order of first need.

    A tile that cannot be decoded is named in the log and masked out; the (how.max_corrupt + 1)-th raises InputError.
    """
    waiting: dict[int, dict[str, Any]] = {}
    incoming = iter(tables)
    corrupt = 0
    with ThreadPoolExecutor(how.threads, thread_name_prefix="decode") as pool:
        for step, rows in enumerate(plan):
            wanted = [int(row) for row in rows if row >= 0]
            while not all(row in waiting for row in wanted):
                table = next(incoming, None)
                if table is None:
                    raise RuntimeError(f"the stream ended before step {step} of {len(plan)} was filled")
                waiting.update((row["tile"], row) for row in table.to_pylist())
            batch = _empty(rows, int(planned[step]), how)
            jobs = [
                (row, pool.submit(_decode_into, batch, slot, waiting.pop(int(row)), how))
                for slot, row in enumerate(rows)
                if row >= 0
            ]
            for row, job in jobs:
                try:
                    job.result()
                except CorruptTile as fault:
                    corrupt += 1
                    _report_corrupt(manifest, int(row), fault, corrupt, how.max_corrupt)
            yield batch


def _empty(rows: np.ndarray, planned: int, how: Decoding) -> TileBatch:
    count, side = len(rows), how.tile_px
    return TileBatch(
        tiles=torch.zeros((count, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2),
        valid=torch.zeros(count, dtype=torch.bool),
        index=torch.from_numpy(rows.astype(np.int64)),
        mask=torch.zeros((count, side, side), dtype=torch.int64) if how.masks else None,
        response=torch.zeros((count, how.response_channels, side, side)) if how.response_channels else None,
        planned=planned,
    )


def _decode_into(batch: TileBatch, slot: int, row: dict[str, Any], how: Decoding) -> None:
    symmetry = 0 if how.flips_seed is None else geometry.draw(how.flips_seed, how.epoch, row["tile"])
    image = decode_image(row["image"], how.tile_px)
    batch.tiles.numpy()[slot] = geometry.apply(image, symmetry, axes=(0, 1)).transpose(2, 0, 1)
    if batch.mask is not None:
        if row["mask"] is None:
            raise CorruptTile("it has no mask")
        batch.mask.numpy()[slot] = geometry.apply(decode_mask(row["mask"], how.tile_px), symmetry, axes=(0, 1))
    if batch.response is not None:
        if not row["response"]:
            raise CorruptTile("the teacher had no response to it")
        response = responses.decode(row["response"], how.response_channels, how.tile_px)
        batch.response.numpy()[slot] = geometry.apply(response, symmetry, axes=(1, 2))
    batch.valid[slot] = True


def _report_corrupt(manifest: Manifest, row: int, fault: CorruptTile, count: int, limit: int) -> None:
    place = manifest.table.slice(row, 1).to_pylist()[0]
    name = f"tile {place['tile_id']} in shard {manifest.uri}/{place['shard']}"
    if count > limit:
        raise InputError(
            f"{name} cannot be used ({fault}); it is undecodable tile number {count} and "
            f"max_corrupt allows {limit}: ingest the tiles again or raise the limit."
        ) from None
    logger.warning("%s cannot be used (%s) and is masked out.", name, fault)


def ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """`items`, produced by a thread up to `depth` ahead of the consumer; its exceptions are raised here."""
    buffer: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def produce() -> None:
        try:
            for item in items:
                if not _put(buffer, ("item", item), stopped):
                    return
            _put(buffer, ("end", None), stopped)
        except BaseException as error:  # handed to the consumer, whatever it is
            _put(buffer, ("error", error), stopped)

    thread = threading.Thread(target=produce, name="batches-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = buffer.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()


def _put(buffer: "queue.Queue[tuple[str, Any]]", entry: tuple[str, Any], stopped: threading.Event) -> bool:
    while not stopped.is_set():
        try:
            buffer.put(entry, timeout=0.5)
            return True
        except queue.Full:
            continue
    return False
