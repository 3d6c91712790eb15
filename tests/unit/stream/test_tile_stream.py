"""The stream of one worker: an epoch's batches depend neither on the number of workers nor on restarts."""

import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histill.config.augment import Augment
from histill.config.common import ShardCache, Storage
from histill.errors import InputError
from histill.stream.counter_rng import multiset_hash
from histill.stream.read import DecodedCacheSpec, ShardReader, TileSource
from histill.stream.tile_batch import TileBatch
from histill.stream.tile_stream import TileStream
from histill.stream.views import UPRIGHT, Views
from histill.tiles.manifest import Manifest
from histill.tiles.tile_rows import hold_rows
from histill.tiles.whole_table import read_table
from testbed.streams import MODES, Mode, read_in, small_tasks

pytestmark = pytest.mark.unit

BATCH = 4
PAIR = Views(32, 64)
VARIED = Augment(flips=True, crop_px=32, brightness=0.2, contrast=0.2, saturation=0.2, stain=0.05)
FLIPS = Augment()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=27, tile_px=64)  # 18 to train: the last batch is padded


@pytest.fixture(scope="module", params=MODES, autouse=True)
def mode(request: pytest.FixtureRequest) -> Iterator[Mode]:
    """Who reads and decodes: each test holds for all of them. Here the work of the tasks is done without Ray."""
    with small_tasks(request.param):
        SHARED["mode"] = request.param
        yield request.param


SHARED: dict[str, Mode] = {}


def stream(manifest: Manifest, worker: int = 0, workers: int = 1, **changes: Any) -> TileStream:
    values: dict[str, Any] = {
        "manifest": manifest,
        "source": TileSource(manifest.uri, manifest.header.digest, Storage(), masks=True),
        "split": "train",
        "views": PAIR,
        "batch_size": BATCH,
        "worker": worker,
        "workers": workers,
    }
    return read_in(SHARED["mode"], TileStream(**values | changes))


def parts(batch: TileBatch) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


def same(first: TileBatch, second: TileBatch) -> bool:
    others = parts(second)
    assert parts(first).keys() == others.keys() == {"student", "teacher", "valid", "index", "mask"}
    equal = all(torch.equal(value, others[name]) for name, value in parts(first).items())
    return equal and first.planned == second.planned


def tiles_of(batches: list[TileBatch]) -> list[int]:
    return [tile for batch in batches for tile in batch.index.tolist() if tile >= 0]


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_exact_pass_brings_every_tile_once(manifest: Manifest, workers: int, split: str) -> None:
    passes = [list(stream(manifest, worker, workers, split=split).exact_pass()) for worker in range(workers)]
    assert len({len(batches) for batches in passes}) == 1  # workers that synchronize each step need equal counts
    seen = np.concatenate([batch.index[batch.valid].numpy() for batches in passes for batch in batches])
    assert sorted(seen) == manifest.rows_of(split).tolist()
    assert sum(batch.planned for batch in passes[0]) == len(seen) == stream(manifest, split=split).tiles


def test_an_exact_pass_shows_tiles_as_they_are_in_the_manifests_order(
    manifest: Manifest, draw_tile: Callable[..., tuple[np.ndarray, np.ndarray]]
) -> None:
    batches = list(stream(manifest).exact_pass())
    assert tiles_of(batches) == manifest.rows_of("train").tolist()
    for batch in batches:
        assert batch.teacher is not None
        assert batch.mask is not None
        for slot, tile in enumerate(batch.index.tolist()):
            if tile < 0:
                continue
            image, mask = draw_tile(tile, 64)
            assert np.array_equal(batch.mask[slot].numpy(), mask)
            assert np.abs(batch.teacher[slot].permute(1, 2, 0).numpy().astype(int) - image).mean() < 3


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("augment", [FLIPS, VARIED], ids=["flips", "crops, color and stain"])
def test_the_global_batches_are_those_of_one_worker(manifest: Manifest, workers: int, augment: Augment) -> None:
    """Pixels included: how a tile is augmented depends only on seed, epoch and tile."""
    alone = list(stream(manifest).training_epoch(3, seed=1, augment=augment))
    assert len(alone) == stream(manifest).steps == 5
    shares = [
        list(stream(manifest, worker, workers).training_epoch(3, seed=1, augment=augment)) for worker in range(workers)
    ]
    for step, whole in enumerate(alone):
        joined = [batches[step] for batches in shares]
        assert {part.planned for part in joined} == {whole.planned}
        for name, value in parts(whole).items():
            assert torch.equal(torch.cat([parts(part)[name] for part in joined]), value), name


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_places_that_are_left_show_tiles_and_count_nowhere(manifest: Manifest, workers: int) -> None:
    """18 tiles in batches of 4: two places are padded, so that two of 4 workers have no tile at all."""

    def last_two(batches: list[list[TileBatch]]) -> tuple[TileBatch, ...]:
        joined = []
        for step in (-2, -1):
            of_all = [parts(each[step]) for each in batches]
            whole = {name: torch.cat([part[name] for part in of_all]) for name in of_all[0]}
            joined.append(replace(batches[0][step], **whole))
        return tuple(joined)

    streams = [stream(manifest, worker, workers) for worker in range(workers)]
    epochs = [list(each.training_epoch(1, seed=2, augment=VARIED)) for each in streams]
    for batches in (epochs, [list(each.exact_pass()) for each in streams]):
        before, last = last_two(batches)
        assert (last.valid.tolist(), last.index[2:].tolist()) == ([True, True, False, False], [-1, -1])
        for name in ("student", "teacher"):
            assert torch.equal(parts(last)[name][2:], parts(before)[name][2:]), name
        assert last.mask is not None
        assert not last.mask[2:].any()
    for each, epoch in zip(streams, epochs, strict=True):  # a run resumed at the last step sees the same
        (again,) = each.training_epoch(1, seed=2, augment=VARIED, from_step=4)
        assert same(again, epoch[-1])


def test_an_epoch_of_one_batch_repeats_its_tiles_for_every_worker(manifest: Manifest) -> None:
    shares = [list(stream(manifest, worker, 4, batch_size=64).exact_pass()) for worker in range(4)]
    (whole,) = stream(manifest, batch_size=64).exact_pass()
    joined = torch.cat([batches[0].student for batches in shares])
    assert torch.equal(joined, whole.student)
    assert torch.equal(joined, joined[:18].repeat(4, 1, 1, 1)[:64])
    assert sum(int(batches[0].valid.sum()) for batches in shares) == 18


def test_a_tile_is_varied_alike_whatever_the_batch_size(manifest: Manifest) -> None:
    def by_tile(size: int) -> dict[int, tuple[bytes, bytes]]:
        batches = stream(manifest, batch_size=size).training_epoch(2, seed=1, augment=VARIED)
        return {
            tile: (batch.student[slot].numpy().tobytes(), batch.teacher[slot].numpy().tobytes())
            for batch in batches
            if batch.teacher is not None
            for slot, tile in enumerate(batch.index.tolist())
            if tile >= 0
        }

    assert by_tile(4) == by_tile(7)


def test_variation_is_drawn_anew_for_each_epoch_and_seed(manifest: Manifest) -> None:
    def students(epoch: int, seed: int) -> dict[int, bytes]:
        batches = stream(manifest).training_epoch(epoch, seed=seed, augment=VARIED)
        return {
            tile: batch.student[slot].numpy().tobytes()
            for batch in batches
            for slot, tile in enumerate(batch.index.tolist())
        }

    first = students(0, 0)
    for other in (students(1, 0), students(0, 1)):
        assert all(other[tile] != first[tile] for tile in manifest.rows_of("train").tolist())


def test_a_crop_shows_the_same_window_in_views_and_mask(manifest: Manifest) -> None:
    for batch in stream(manifest).training_epoch(0, seed=0, augment=Augment(crop_px=32)):
        assert batch.teacher is not None
        assert batch.mask is not None
        assert batch.student.shape == (BATCH, 3, 16, 16)
        assert batch.teacher.shape == (BATCH, 3, 32, 32)
        assert batch.mask.shape == (BATCH, 32, 32)
        small = torch.nn.functional.avg_pool2d(batch.teacher.float(), 2)
        assert (batch.student.float() - small).abs().max() <= 0.5
        dark = batch.teacher.float().mean(1)
        for slot in np.flatnonzero(batch.valid):
            inside = batch.mask[slot] > 0
            if 50 < int(inside.sum()) < 900:
                assert dark[slot][inside].mean() < dark[slot][~inside].mean() - 10


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("from_step", [1, 4, 5])
def test_an_epoch_goes_on_from_a_step(manifest: Manifest, workers: int, from_step: int) -> None:
    for worker in range(workers):
        mine = stream(manifest, worker, workers)
        whole = list(mine.training_epoch(2, seed=1, augment=VARIED))
        rest = list(mine.training_epoch(2, seed=1, augment=VARIED, from_step=from_step))
        assert len(rest) == len(whole) - from_step
        assert all(same(first, second) for first, second in zip(rest, whole[from_step:], strict=True))


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("longer"), tiles=123, tile_px=32, masks=False)


@settings(max_examples=12)
@given(
    st.sampled_from([1, 2, 3, 6]),
    st.sampled_from([1, 2, 3, 6]),
    st.integers(0, 7),
    st.sampled_from([None, "case"]),
    st.sampled_from([1, 16, 4096]),
)
def test_another_number_of_workers_goes_on_with_exactly_the_rest(
    longer: Manifest, before: int, after: int, stopped_at: int, balance: str | None, buffer_tiles: int
) -> None:
    def share(worker: int, workers: int, **how: int) -> Iterator[TileBatch]:
        source = TileSource(longer.uri, longer.header.digest, Storage())
        changes: dict[str, Any] = {
            "views": Views(8),
            "batch_size": 12,
            "balance": balance,
            "buffer_tiles": buffer_tiles,
        }
        mine = stream(longer, worker, workers, source=source, **changes)
        return mine.training_epoch(1, seed=5, **how)

    seen = []
    for worker in range(before):
        running = share(worker, before)
        seen += tiles_of([next(running) for _ in range(stopped_at)])
        running.close()  # type: ignore[attr-defined]
    for worker in range(after):
        seen += tiles_of(list(share(worker, after, from_step=stopped_at)))
    planned = np.asarray(stream(longer, balance=balance).tiles_of_epoch(1, seed=5))
    assert sorted(seen) == planned.tolist()
    assert multiset_hash(np.array(seen)) == multiset_hash(planned)
    if balance is None:
        assert len(set(seen)) == len(seen)


def test_an_epoch_brings_every_tile_once_and_others_in_another_order(manifest: Manifest) -> None:
    orders = []
    for epoch in range(2):
        batches = list(stream(manifest).training_epoch(epoch, seed=1))
        seen = tiles_of(batches)
        assert sorted(seen) == manifest.rows_of("train").tolist()
        assert sum(batch.planned for batch in batches) == len(seen)
        orders.append(seen)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_balanced_epoch_shows_each_case_equally_often(longer: Manifest, workers: int) -> None:
    cases = read_table(longer)["case"].to_pylist()
    source = TileSource(longer.uri, longer.header.digest, Storage())
    changes: dict[str, Any] = {"source": source, "views": Views(32), "batch_size": 8, "balance": "case"}
    copies: dict[int, set[bytes]] = {}
    seen: list[int] = []
    for worker in range(workers):
        for batch in stream(longer, worker, workers, **changes).training_epoch(0, seed=2, augment=FLIPS):
            for slot, tile in enumerate(batch.index.tolist()):
                if tile >= 0:
                    seen.append(tile)
                    copies.setdefault(tile, set()).add(batch.student[slot].numpy().tobytes())
    whole = stream(longer, **changes)
    assert len(seen) == whole.tiles
    assert sorted(seen) == np.asarray(whole.tiles_of_epoch(0, seed=2)).tolist()
    shares = Counter(cases[tile] for tile in seen)
    assert max(shares.values()) - min(shares.values()) <= 1


def test_the_copies_of_a_tile_are_varied_each_by_itself(tmp_path: Path, tile_set: Callable[..., Manifest]) -> None:
    """A slide with a single tile makes up half of an epoch, each time with other flips and colors."""
    manifest = tile_set(tmp_path, tiles=40, tile_px=32, masks=False)
    table = read_table(manifest)
    slides = ["rare" if row == 0 else "common" for row in range(40)]
    table = table.set_column(table.schema.get_field_index("slide"), "slide", pa.array(slides))
    changed = Manifest(manifest.uri, manifest.header, hold_rows(table))
    source = TileSource(manifest.uri, manifest.header.digest, Storage())
    whole = stream(changed, source=source, views=Views(32), balance="slide")
    batches = list(whole.training_epoch(0, seed=0, augment=VARIED.model_copy(update={"crop_px": None})))
    shown = [batch.student[slot].numpy().tobytes() for batch in batches for slot in np.flatnonzero(batch.index == 0)]
    assert len(shown) == whole.tiles // 2
    assert len(set(shown)) == len(shown)


def test_an_exact_pass_is_never_balanced(longer: Manifest) -> None:
    source = TileSource(longer.uri, longer.header.digest, Storage())
    batches = list(stream(longer, source=source, views=Views(8), balance="case").exact_pass())
    assert tiles_of(batches) == longer.rows_of("train").tolist()


def addresses(batch: TileBatch) -> set[int]:
    return {value.data_ptr() for name, value in parts(batch).items() if name in ("student", "teacher", "mask")}


def test_memory_is_used_again_but_never_while_a_batch_is_held(manifest: Manifest) -> None:
    mine = stream(manifest)
    held: list[TileBatch] = []
    copies: list[dict[str, torch.Tensor]] = []
    used: list[set[int]] = []
    for epoch in range(4):
        for number, batch in enumerate(mine.training_epoch(epoch, seed=0, augment=VARIED)):
            used.append(addresses(batch))
            if number == 1:  # one of each epoch is kept
                held.append(batch)
                copies.append({name: value.clone() for name, value in parts(batch).items()})
            del batch
    for batch, copy in zip(held, copies, strict=True):
        assert all(torch.equal(value, copy[name]) for name, value in parts(batch).items())
    assert len(set().union(*map(addresses, held))) == 3 * len(held)
    assert len(set().union(*used)) < sum(map(len, used)) / 2  # 20 batches, and memory for far fewer


def test_a_part_of_a_batch_keeps_its_memory(manifest: Manifest) -> None:
    mine = stream(manifest)
    running = mine.training_epoch(0, seed=0)
    tile = next(running).student[0]
    copy = tile.clone()
    for _ in running:
        gc.collect()
    for _ in mine.training_epoch(1, seed=0):
        pass
    assert torch.equal(tile, copy)


def test_a_consumer_that_leaves_ends_decoders_and_readers(manifest: Manifest) -> None:
    before = set(threading.enumerate())
    running = stream(manifest, read=ShardReader(2)).training_epoch(0, seed=0)
    next(running)
    running.close()
    assert set(threading.enumerate()) <= before


def test_a_spoilt_tile_is_masked_out_in_every_view(
    tmp_path: Path, tile_set: Callable[..., Manifest], spoil_tile: Callable[..., str]
) -> None:
    manifest = tile_set(tmp_path, tiles=24, tile_px=64)
    spoil_tile(manifest, 5)
    batches = list(stream(manifest, max_corrupt=1).training_epoch(0, seed=0, augment=VARIED))
    assert sorted(tiles_of(batches)) == manifest.rows_of("train").tolist()
    (bad,) = [(batch, slot) for batch in batches for slot in np.flatnonzero(batch.index == 5)]
    batch, slot = bad
    assert batch.teacher is not None
    assert not batch.valid[slot]
    shown = int(np.flatnonzero(batch.valid)[0])  # shown instead, since a black tile would enter batch norm
    assert torch.equal(batch.student[slot], batch.student[shown])
    assert torch.equal(batch.teacher[slot], batch.teacher[shown])
    with pytest.raises(InputError, match="max_corrupt allows 0"):
        list(stream(manifest).training_epoch(0, seed=0))


def keeping(manifest: Manifest, folder: Path) -> TileSource:
    storage = Storage(cache=ShardCache(folder=str(folder), max_gb=1))
    return TileSource(manifest.uri, manifest.header.digest, storage, masks=True, kept=DecodedCacheSpec(64, 64))


@pytest.mark.parametrize("views", [PAIR, Views(64, 32)])
def test_tiles_kept_decoded_look_the_same(
    tmp_path: Path, tile_set: Callable[..., Manifest], views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tile_set(tmp_path / "tiles", tiles=27, tile_px=64)
    kept = stream(manifest, views=views, source=keeping(manifest, tmp_path / "cache"))
    plain = stream(manifest, views=views)
    for augment in (UPRIGHT, FLIPS, VARIED):
        pairs = zip(
            kept.training_epoch(0, seed=3, augment=augment),
            plain.training_epoch(0, seed=3, augment=augment),
            strict=True,
        )
        for number, (one, other) in enumerate(pairs):
            assert same(one, other), (augment, number)
    monkeypatch.setattr("histill.stream.views.decode_image", None)  # nothing is decoded again, in any epoch
    assert len(list(kept.training_epoch(1, seed=3, augment=VARIED))) == kept.steps


def test_smaller_tiles_kept_decoded_look_nearly_the_same(tmp_path: Path, manifest: Manifest) -> None:
    """Crop the downscaled tile, or downscale the crop: the same areas, rounded twice."""
    source = replace(keeping(manifest, tmp_path), kept=DecodedCacheSpec(64, 32))
    for augment in (FLIPS, replace_colors(VARIED)):
        kept = stream(manifest, views=Views(32), source=source).training_epoch(0, seed=3, augment=augment)
        for one, other in zip(
            kept, stream(manifest, views=Views(32)).training_epoch(0, seed=3, augment=augment), strict=True
        ):
            difference = (one.student.float() - other.student.float()).abs()
            assert difference.max() <= (0 if augment is FLIPS else 4)
            assert difference.mean() <= 0.5


def replace_colors(augment: Augment) -> Augment:
    return Augment(flips=augment.flips, crop_px=augment.crop_px)


def test_a_row_group_with_a_spoilt_tile_is_not_kept(
    tmp_path: Path, tile_set: Callable[..., Manifest], spoil_tile: Callable[..., str]
) -> None:
    manifest = tile_set(tmp_path / "tiles", tiles=24, tile_px=64)
    spoil_tile(manifest, 5)
    kept = stream(manifest, max_corrupt=1, source=keeping(manifest, tmp_path / "cache"))
    for _ in range(2):
        for one, other in zip(
            kept.training_epoch(0, seed=0), stream(manifest, max_corrupt=1).training_epoch(0, seed=0), strict=True
        ):
            assert same(one, other)


def test_an_empty_split_is_refused(manifest: Manifest) -> None:
    table = read_table(manifest)
    rows = hold_rows(table.filter(pa.array([split != "val" for split in table["split"].to_pylist()])))
    with pytest.raises(InputError, match=r"split 'val' .* is empty"):
        _ = stream(Manifest(manifest.uri, manifest.header, rows), split="val").tiles
