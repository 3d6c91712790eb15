"""Fixed-size batches: encoded rows are gathered in the plan's order and decoded here, next to their consumer."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from histill.config.augment import Augment
from histill.errors import InputError
from histill.stream import responses
from histill.stream.buffers import Buffers
from histill.stream.cached_views import CachedViews
from histill.stream.decode import CorruptTile, decode_mask
from histill.stream.encoded import EncodedRow, list_encoded_rows
from histill.stream.geometry import apply_symmetry_to_planes, compose_symmetries
from histill.stream.index import SampleIndex
from histill.stream.plan import Step
from histill.stream.tile_batch import TileBatch
from histill.stream.views import (
    Placement,
    Views,
    crop_and_orient,
    draw_numbers,
    draw_placements,
    view_input_px,
    view_into,
)
from histill.tiles.manifest import Manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodeSpec:
    """How rows become a batch."""

    tile_px: int
    views: Views
    augment: Augment
    seed: int
    epoch: int
    labels: np.ndarray | None  # int64 [tiles of the manifest] class indices, or [tiles, K] of 0 and 1
    masks: bool
    threads: int
    max_corrupt: int
    responses: CachedViews | None = None
    maps: bool = False  # the teacher's feature maps beside its responses

    @property
    def answered(self) -> CachedViews | None:
        """The views that the responses are to; None: upright whole tiles."""
        return self.responses if self.responses is not None and self.responses.views > 1 else None

    @property
    def window_px(self) -> int:
        """The side of what a batch shows of a tile."""
        return (self.answered or self).augment.crop_px or self.tile_px

    def response_shape(self, side_px: int) -> tuple[int, int, int]:
        """[C, H, W] of a response to a tile or window of `side_px`."""
        assert self.responses is not None
        side = side_px if self.responses.outputs.dense else 1
        return self.responses.outputs.packed_channels, side, side

    @property
    def map_shape(self) -> tuple[int, int, int] | None:
        """[C, h, w] of the teacher's feature maps, if they are brought."""
        return self.responses.map_shape if self.maps and self.responses is not None else None


@dataclass(frozen=True)
class _Job:
    """One entry to decode into one slot of a batch."""

    slot: int
    tile: int  # row of the manifest
    row: EncodedRow
    place: Placement
    answer: Placement  # within its stored response
    draws: np.ndarray
    counts: bool  # False: it is shown where no tile is left


class _Arrays:
    """The memory behind a batch, [B, ...] each, uint8 but for feature maps."""

    def __init__(self, buffers: Buffers, count: int, how: DecodeSpec) -> None:
        window = how.window_px
        sides = [view_input_px(side, window, how.tile_px) for side in how.views.sides]
        self.views = [buffers.lend((count, side, side, 3)) for side in sides]
        self.mask = buffers.lend((count, window, window)) if how.masks else None
        self.response = buffers.lend((count, *how.response_shape(window))) if how.responses else None
        self.map = None if how.map_shape is None else np.zeros((count, *how.map_shape), np.float32)
        self.valid = np.ones(count, bool)
        self.shown = np.ones(count, bool)  # whether there are pixels, if only of a tile that does not count

    def clear(self, slot: int) -> None:
        self.valid[slot] = self.shown[slot] = False
        for array in (*self.views, self.mask, self.map):
            if array is not None:
                array[slot] = 0
        if self.response is not None:
            self.response[slot] = responses.ZERO

    def fill(self) -> None:
        """Repeat the tiles that are shown in the places where none is."""
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
    """The batches of `steps` from `tables`, which bring the entries that the steps open, in that order.

    A tile that cannot be decoded is named in the log and masked out, with another of the batch in its place; the
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
            _report_corrupt(manifest, tile, fault, corrupt, how.max_corrupt)
        arrays.fill()
        index = places.tiles_of(step.entries)
        label = None if how.labels is None else how.labels[index]  # a copy
        if label is not None:
            label[index < 0] = -1
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
                missing -= table.num_rows  # below 0: it brought entries of later steps, too
            arrays = _Arrays(buffers, len(step.entries), how)
            needed = dict.fromkeys(np.concatenate([step.entries[step.entries >= 0], step.fill]).tolist())
            rows = {entry: rows.get(entry) or waiting.pop(entry) for entry in needed}  # what fills may be of the last
            jobs = _jobs(step, arrays, rows, places, how)
            # A few tiles at a time: a task for each would cost as much as a tenth of a small view.
            size = max(1, len(jobs) // (2 * how.threads))
            parts = [jobs[start : start + size] for start in range(0, len(jobs), size)]
            decoding.append((arrays, step, [pool.submit(_decode, part, arrays, how) for part in parts]))
            if len(decoding) > 1:  # one is being decoded while another is handed over
                yield finished()
        while decoding:
            yield finished()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _one_thread_each() -> None:
    import cv2

    cv2.setNumThreads(1)  # the pool's threads are all that may run


def _jobs(step: Step, arrays: _Arrays, rows: dict[int, EncodedRow], places: SampleIndex, how: DecodeSpec) -> list[_Job]:
    present, left = np.flatnonzero(step.entries >= 0), np.flatnonzero(step.entries < 0)
    for slot in left:
        arrays.clear(int(slot))
    arrays.shown[left[: len(step.fill)]] = True
    slots = np.concatenate([present, left[: len(step.fill)]])
    entries = np.concatenate([step.entries[present], step.fill])
    tiles = places.tiles_of(entries)
    draws = draw_numbers(how.seed, how.epoch, tiles, places.copies_of(entries))
    places_of_tiles, places_of_answers = _placements(tiles, draws, how)
    drawn = zip(slots, tiles, entries, places_of_tiles, places_of_answers, draws, strict=True)
    return [
        _Job(int(slot), int(tile), rows[int(entry)], place, answer, draw[3:], bool(step.entries[slot] >= 0))
        for slot, tile, entry, place, answer, draw in drawn
    ]


def _placements(tiles: np.ndarray, draws: np.ndarray, how: DecodeSpec) -> tuple[list[Placement], list[Placement]]:
    """What a batch shows of each tile, and of its stored response.

    Where the teacher has answered a view, that view is shown; flips turn view and answer further, both alike.
    """
    if how.answered is None:
        places = draw_placements(how.augment, draws, how.tile_px, how.views)
        return places, places
    side = how.window_px
    answers = draw_placements(Augment(flips=how.augment.flips), draws, side, Views(side))
    seen = how.answered.placements(how.answered.view_of(how.epoch), tiles, how.tile_px)
    turns = [compose_symmetries(view.symmetry, answer.symmetry) for view, answer in zip(seen, answers, strict=True)]
    return [replace(view, symmetry=turn) for view, turn in zip(seen, turns, strict=True)], answers


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
    colors = (job.draws, how.augment) if how.augment.colors else None
    data, decoded_px = (row.image, None) if row.pixels is None else (row.pixels, max(how.views.sides))
    if not data:
        raise CorruptTile("its bytes are not those that the manifest names")
    view_into(
        [view[job.slot] for view in arrays.views], data, how.tile_px, how.views, place, colors, decoded_px=decoded_px
    )
    if not job.counts:
        return
    if arrays.mask is not None:
        if row.mask is None:
            raise CorruptTile("it has no mask")
        arrays.mask[job.slot] = crop_and_orient(decode_mask(row.mask, how.tile_px), place)
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


def _crop_levels(levels: np.ndarray, place: Placement) -> np.ndarray:
    """What `place` shows of a stored response, [C, H, W]."""
    window = levels[:, place.top : place.top + place.side, place.left : place.left + place.side]
    return apply_symmetry_to_planes(window, place.symmetry)


def _report_corrupt(manifest: Manifest, tile: int, fault: CorruptTile, count: int, limit: int) -> None:
    place = manifest.table.slice(tile, 1).to_pylist()[0]
    name = f"tile {place['tile_id']} in shard {manifest.uri}/{place['shard']}"
    if count > limit:
        raise InputError(
            f"{name} cannot be used ({fault}); it is undecodable tile number {count} and "
            f"max_corrupt allows {limit}: delete the shard and repeat the ingest that made it, or raise the limit."
        ) from None
    logger.warning("%s cannot be used (%s) and is masked out.", name, fault)
