"""Assemble fixed-size batches: collect encoded rows in plan order and decode them in the consuming process."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from histill.counts import count_event
from histill.errors import InputError
from histill.stream import responses
from histill.stream.buffers import Buffers
from histill.stream.cached_views import CachedViews
from histill.stream.decode import CorruptTile
from histill.stream.decode_spec import DecodeSpec, place_tiles, show_mask, show_tile
from histill.stream.encoded import EncodedRow, list_encoded_rows
from histill.stream.geometry import apply_symmetry_to_planes
from histill.stream.index import SampleIndex
from histill.stream.plan import Step
from histill.stream.tile_batch import TileBatch
from histill.stream.views import Placement, draw_numbers
from histill.tiles.manifest import Manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """One entry to decode into one slot of a batch."""

    slot: int
    tile: int  # row of the manifest
    row: EncodedRow
    place: Placement
    answer: Placement  # within its stored response
    draws: np.ndarray
    counts: bool  # False: it only fills a place that is not valid


class _Arrays:
    """The arrays behind a batch, each [B, ...] and uint8, except for the feature maps in float32."""

    def __init__(self, buffers: Buffers, count: int, how: DecodeSpec) -> None:
        window = how.window_px
        self.views = [buffers.lend((count, side, side, 3)) for side in how.shown_px]
        self.mask = buffers.lend((count, window, window)) if how.masks else None
        self.response = buffers.lend((count, *how.response_shape(window))) if how.responses else None
        self.map = None if how.map_shape is None else np.zeros((count, *how.map_shape), np.float32)
        self.embeddings = {name: np.zeros((count, _width(each)), np.float32) for name, each in how.embeddings}
        self.tokens = {
            name: np.zeros((count, *each.map_shape), np.float32) for name, each in how.embeddings if each.map_shape
        }
        self.valid = np.ones(count, bool)
        self.shown = np.ones(count, bool)  # whether the place has pixels, even of a tile that only fills it

    def clear(self, slot: int) -> None:
        self.valid[slot] = self.shown[slot] = False
        for array in (*self.views, self.mask, self.map, *self.embeddings.values(), *self.tokens.values()):
            if array is not None:
                array[slot] = 0
        if self.response is not None:
            self.response[slot] = responses.ZERO

    def fill(self) -> None:
        """Fill the places that are still empty with tiles from the other places."""
        empty, shown = np.flatnonzero(~self.shown), np.flatnonzero(self.shown)
        if len(empty) and len(shown):
            for view in self.views:
                view[empty] = view[np.resize(shown, len(empty))]

    def batch(self, index: np.ndarray, label: np.ndarray | None, planned: int) -> TileBatch:
        views = [torch.from_numpy(view).permute(0, 3, 1, 2) for view in self.views]
        return TileBatch(
            student=views[0],
            teacher=views[1] if len(views) > 1 else None,
            valid=torch.from_numpy(self.valid),
            index=torch.from_numpy(index),
            label=None if label is None else torch.from_numpy(label),
            mask=None if self.mask is None else torch.from_numpy(self.mask),
            response=None if self.response is None else torch.from_numpy(self.response),
            map=None if self.map is None else torch.from_numpy(self.map),
            embeddings={name: torch.from_numpy(each) for name, each in self.embeddings.items()},
            tokens={name: torch.from_numpy(each) for name, each in self.tokens.items()},
            planned=planned,
        )


def decode_batches(
    steps: Iterable[Step],
    tables: Iterator[pa.Table],
    places: SampleIndex,
    manifest: Manifest,
    buffers: Buffers,
    how: DecodeSpec,
) -> Iterator[TileBatch]:
    """Yield the batches of `steps`, decoded from `tables`, which deliver the entries that the steps open, in order.

    A tile that cannot be decoded is named in the log, marked invalid and replaced by another tile of the batch; the
    (how.max_corrupt + 1)-th raises InputError.
    """
    waiting: dict[int, EncodedRow] = {}
    rows: dict[int, EncodedRow] = {}
    decoding: deque[tuple[_Arrays, Step, list[Future[list[tuple[int, CorruptTile]]]]]] = deque()
    corrupt = missing = 0

    def finished() -> TileBatch:
        nonlocal corrupt
        arrays, step, jobs = decoding.popleft()
        for tile, fault in (found for job in jobs for found in job.result()):
            corrupt += 1
            count_event("undecodable_tiles")
            _report_corrupt(manifest, tile, fault, corrupt, how.max_corrupt)
        arrays.fill()
        index = places.tiles_of(step.entries)
        label = None if how.labels is None else how.labels[index]
        return arrays.batch(index, label, step.planned)

    pool = ThreadPoolExecutor(how.threads, thread_name_prefix="decode", initializer=_one_thread_each)
    try:
        for step in steps:
            missing += len(step.opened)
            while missing > 0:
                table = next(tables, None)
                if table is None:
                    raise RuntimeError(f"the stream ended before step {step.number} was filled")
                waiting.update(list_encoded_rows(table))
                missing -= table.num_rows  # below 0: the table also held entries of later steps
            arrays = _Arrays(buffers, len(step.entries), how)
            needed = dict.fromkeys(np.concatenate([step.entries[step.entries >= 0], step.fill]).tolist())
            rows = {entry: rows.get(entry) or waiting.pop(entry) for entry in needed}  # filler may be of the last step
            jobs = _jobs(step, arrays, rows, places, how)
            # Several tiles per task: one task per tile would add a tenth to the cost of a small view.
            size = max(1, len(jobs) // (2 * how.threads))
            parts = [jobs[start : start + size] for start in range(0, len(jobs), size)]
            decoding.append((arrays, step, [pool.submit(_decode, part, arrays, how) for part in parts]))
            if len(decoding) > 1:  # decode one batch while another is consumed
                yield finished()
        while decoding:
            yield finished()
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread_each() -> None:
    import cv2

    cv2.setNumThreads(1)  # the pool already uses all threads that it may


def _jobs(step: Step, arrays: _Arrays, rows: dict[int, EncodedRow], places: SampleIndex, how: DecodeSpec) -> list[_Job]:
    present, left = np.flatnonzero(step.entries >= 0), np.flatnonzero(step.entries < 0)
    for slot in left:
        arrays.clear(int(slot))
    arrays.shown[left[: len(step.fill)]] = True
    slots = np.concatenate([present, left[: len(step.fill)]])
    entries = np.concatenate([step.entries[present], step.fill])
    tiles = places.tiles_of(entries)
    draws = draw_numbers(how.seed, how.epoch, tiles, places.copies_of(entries))
    places_of_tiles, places_of_answers = place_tiles(tiles, draws, how)
    counts = np.arange(len(slots)) < len(present)
    columns = (slots.tolist(), tiles.tolist(), [rows[entry] for entry in entries.tolist()])
    drawn = zip(*columns, places_of_tiles, places_of_answers, draws[:, 3:], counts.tolist(), strict=True)
    return [_Job(*each) for each in drawn]


def _decode(jobs: list[_Job], arrays: _Arrays, how: DecodeSpec) -> list[tuple[int, CorruptTile]]:
    faults = []
    for job in jobs:
        try:
            _decode_one(job, arrays, how)
        except CorruptTile as fault:
            arrays.clear(job.slot)
            if job.counts:
                faults.append((job.tile, fault))
    return faults


def _decode_one(job: _Job, arrays: _Arrays, how: DecodeSpec) -> None:
    row, place = job.row, job.place
    show_tile([view[job.slot] for view in arrays.views], row, place, job.draws, how)
    if not job.counts:
        return
    if arrays.mask is not None:
        arrays.mask[job.slot] = show_mask(row, place, how)
    if arrays.response is not None and how.responses is not None:
        if not row.response:
            raise CorruptTile("the teacher had no response to it; cache_responses tries it again")
        channels, side, _ = how.response_shape(how.window_px if how.answered else how.tile_px)
        levels = responses.decode_levels(row.response, channels, side)
        arrays.response[job.slot] = _crop_levels(levels, job.answer) if how.responses.outputs.dense else levels
    if arrays.map is not None and how.map_shape is not None:
        if not row.map:
            raise CorruptTile("the teacher had no feature map of it; cache_responses tries it again")
        arrays.map[job.slot] = apply_symmetry_to_planes(
            responses.decode_map(row.map, how.map_shape), job.answer.symmetry
        )

    for name, cached in how.embeddings:
        embedding = _answer_of(name, row.embeddings)
        arrays.embeddings[name][job.slot] = responses.decode_embedding(embedding, _width(cached))
        if cached.map_shape is not None:
            tokens = responses.decode_map(_answer_of(name, row.tokens), cached.map_shape)
            arrays.tokens[name][job.slot] = apply_symmetry_to_planes(tokens, job.answer.symmetry)


def _answer_of(teacher: str, answers: Mapping[str, memoryview | None]) -> memoryview:
    data = answers[teacher]
    if not data:
        raise CorruptTile(f"the teacher {teacher} had no embedding of it; cache_responses tries it again")
    return data


def _width(cached: CachedViews) -> int:
    assert cached.outputs.width is not None
    return cached.outputs.width


def _crop_levels(levels: np.ndarray, place: Placement) -> np.ndarray:
    """Crop a stored response, [C, H, W], to the window of `place` and apply its symmetry."""
    window = levels[:, place.top : place.top + place.side, place.left : place.left + place.side]
    return apply_symmetry_to_planes(window, place.symmetry)


def _report_corrupt(manifest: Manifest, tile: int, fault: CorruptTile, count: int, limit: int) -> None:
    place = manifest.tile(tile)
    name = f"tile {place['tile_id']} in shard {manifest.uri}/{place['shard']}"
    if count > limit:
        raise InputError(
            f"{name} cannot be used ({fault}); it is undecodable tile number {count} and "
            f"max_corrupt allows {limit}: delete the shard and repeat the ingest that made it, or raise the limit.",
            code="tiles-undecodable",
        ) from None
    logger.warning("%s cannot be used (%s) and is masked out.", name, fault)
