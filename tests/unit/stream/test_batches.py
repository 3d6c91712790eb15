"""Fixed-size batches from encoded rows: what is masked out, logged and refused."""

import io
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from histill.config.augment import Augment
from histill.counts import take_counts
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.stream.batches import DecodeSpec, decode_batches
from histill.stream.buffers import Buffers
from histill.stream.cached_views import CachedViews
from histill.stream.geometry import apply_symmetry, apply_symmetry_to_planes
from histill.stream.index import SampleIndex
from histill.stream.plan import Step
from histill.stream.prefetch import Prefetched
from histill.stream.responses import STEP, ZERO, encode_logits, levels_to_logits
from histill.stream.tile_batch import TileBatch
from histill.stream.views import UPRIGHT, Placement, Views, draw_numbers, draw_placements
from histill.tiles.manifest import Header, Manifest
from histill.tiles.schema import MANIFEST
from histill.tiles.tile_rows import hold_rows

pytestmark = pytest.mark.unit

SIDE = 4
TILES = np.array([10, 11, 12, 13, 14, 15, 16, 17])  # rows of the manifest; entry e is tile 10 + e


def pixels(entry: int) -> np.ndarray:
    return np.random.default_rng(entry).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)


def classes(entry: int) -> np.ndarray:
    return np.random.default_rng(entry).integers(0, 2, (SIDE, SIDE)).astype(np.uint8)


def logits(entry: int) -> np.ndarray:
    return np.random.default_rng(entry).normal(0, 3, (1, SIDE, SIDE)).astype(np.float32)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def table(*entries: int, **spoilt: object) -> pa.Table:
    """Encoded rows of `entries`; `spoilt` replaces a column's value in all of them."""
    rows = [
        {
            "entry": entry,
            "image": png(pixels(entry)),
            "mask": png(classes(entry)),
            "response": encode_logits(logits(entry)),
        }
        | spoilt
        for entry in entries
    ]
    types = [("entry", pa.int64()), ("image", pa.binary()), ("mask", pa.binary()), ("response", pa.binary())]
    return pa.Table.from_pylist(rows, schema=pa.schema(types))


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    rows = [
        dict.fromkeys(("tile_id", "slide", "case", "content"), f"tile-{tile}")
        | {"x": 0, "y": 0, "mpp": 0.5, "size_px": SIDE, "has_mask": True, "split": "train" if tile >= 10 else "val"}
        | {"shard": f"shards/{tile // 4}.parquet", "row_group": 0, "row": tile % 4}
        for tile in range(18)
    ]
    header = Header(
        digest="", table="", tiles=18, tile_px=SIDE, mpp=0.5, labels=(), splits={"train": 8}, masks=8, ingest=""
    )
    return Manifest("s3://bucket/set", header, hold_rows(pa.Table.from_pylist(rows, schema=MANIFEST)))


RESPONSES = CachedViews("", OutputSpec("segmentation", ("background", "nucleus")))


def decoding(**changes: object) -> DecodeSpec:
    values: dict[str, object] = {
        "tile_px": SIDE,
        "views": Views(SIDE),
        "augment": UPRIGHT,
        "seed": 0,
        "epoch": 0,
        "labels": None,
        "masks": True,
        "responses": RESPONSES,
        "threads": 2,
        "max_corrupt": 0,
    }
    return DecodeSpec(**values | changes)  # type: ignore[arg-type]


def steps_for(plan: list[list[int]], tables: list[list[int]], planned: list[int] | None = None) -> list[Step]:
    """Steps that consume the rows of `plan` and open the entries of `tables` (a list each) that are not open yet."""
    steps, left = [], [list(entries) for entries in tables]
    waiting: set[int] = set()
    for number, entries in enumerate(plan):
        opened: list[int] = []
        while left and not {entry for entry in entries if entry >= 0} <= waiting:
            opened += left.pop(0)
            waiting |= set(opened)
        count = planned[number] if planned else sum(entry >= 0 for entry in entries)
        steps.append(Step(number, np.array(entries), np.sort(np.array(opened, np.int64)), count))
    return steps


def running(manifest: Manifest, steps: list[Step], tables: Iterator[pa.Table], **how: object) -> Iterator[TileBatch]:
    places = SampleIndex.of(manifest, "train")
    assert np.array_equal(places.tiles, TILES)
    return decode_batches(steps, tables, places, manifest, Buffers(), decoding(**how))


def batches(
    manifest: Manifest, plan: list[list[int]], tables: list[pa.Table], planned: list[int] | None = None, **how: object
) -> list[TileBatch]:
    steps = steps_for(plan, [each["entry"].to_pylist() for each in tables], planned)
    return list(running(manifest, steps, iter(tables), **how))


def test_batches_follow_the_plan(manifest: Manifest) -> None:
    plan = [[5, 0], [3, 7], [1, 2]]
    made = batches(manifest, plan, [table(0, 2, 7), table(1, 5), table(3)], planned=[4, 4, 3])
    assert [batch.index.tolist() for batch in made] == [[15, 10], [13, 17], [11, 12]]
    assert [batch.planned for batch in made] == [4, 4, 3]
    for batch, entries in zip(made, plan, strict=True):
        assert batch.valid.all()
        assert batch.teacher is None
        assert batch.mask is not None
        assert batch.response is not None
        read = levels_to_logits(batch.response).numpy()
        for slot, entry in enumerate(entries):
            assert np.array_equal(batch.student[slot].permute(1, 2, 0).numpy(), pixels(entry))
            assert np.array_equal(batch.mask[slot].numpy(), classes(entry))
            assert np.abs(read[slot] - logits(entry)).max() <= STEP / 2 + 1e-6


def test_a_table_may_bring_entries_of_later_steps(manifest: Manifest) -> None:
    """A step waits for as many rows as it and the steps before it open, not for a number of tables."""
    steps = [Step(0, np.array([0]), np.array([0, 1]), 1), Step(1, np.array([2]), np.array([2]), 1)]
    steps.append(Step(2, np.array([1]), np.array([], np.int64), 1))
    made = running(manifest, steps, iter([table(0, 1, 2)]))
    assert [batch.index.tolist() for batch in made] == [[10], [12], [11]]


def test_tables_in_chunks_are_read_whole(manifest: Manifest) -> None:
    (batch,) = batches(manifest, [[3, 0, 5]], [pa.concat_tables([table(0), table(3, 5)])])
    for slot, entry in enumerate([3, 0, 5]):
        assert np.array_equal(batch.student[slot].permute(1, 2, 0).numpy(), pixels(entry))


def test_padding_is_masked_out_and_shows_other_tiles(manifest: Manifest) -> None:
    buffers = Buffers()
    lent = [buffers.lend((4, SIDE, SIDE, 3)), buffers.lend((4, SIDE, SIDE)), buffers.lend((4, 1, SIDE, SIDE))]
    for array in lent:
        array[:] = 77  # stale contents must not show
    del lent, array
    steps = steps_for([[0, 3, 1, 2], [4, -1, 6, -1]], [[0, 1, 2, 3], [4, 6]])
    steps[1] = replace(steps[1], fill=np.array([3, 2]))
    places = SampleIndex.of(manifest, "train")
    tables = iter([table(0, 1, 2, 3), table(4, 6)])
    _, batch = decode_batches(steps, tables, places, manifest, buffers, decoding())
    assert batch.valid.tolist() == [True, False, True, False]
    assert batch.index.tolist() == [14, -1, 16, -1]
    assert batch.mask is not None
    assert batch.response is not None
    for slot, entry in enumerate([4, 3, 6, 2]):
        assert np.array_equal(batch.student[slot].permute(1, 2, 0).numpy(), pixels(entry))
    assert batch.mask[[1, 3]].sum() == 0
    assert (batch.response[[1, 3]] == ZERO).all()
    (empty,) = batches(manifest, [[-1, -1]], [])
    assert not empty.valid.any()


def test_a_tile_that_fills_a_place_and_is_spoilt_is_named_once_and_replaced(
    manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    steps = steps_for([[0, 1], [2, -1]], [[0, 1], [2]])
    steps[1] = replace(steps[1], fill=np.array([1]))
    tables = iter([table(0), table(1, image=b"spoilt"), table(2)])
    first, last = running(manifest, steps, tables, max_corrupt=1)
    assert (first.valid.tolist(), last.valid.tolist()) == ([True, False], [True, False])
    assert len(caplog.messages) == 1
    for batch, entry in ((first, 0), (last, 2)):
        for slot in range(2):
            assert np.array_equal(batch.student[slot].permute(1, 2, 0).numpy(), pixels(entry))


def test_masks_and_responses_are_left_out_unless_asked_for(manifest: Manifest) -> None:
    (batch,) = batches(manifest, [[0]], [table(0)], masks=False, responses=None)
    assert batch.mask is None
    assert batch.response is None
    (batch,) = batches(manifest, [[0]], [table(0).drop_columns(["mask", "response"])], masks=False, responses=None)
    assert batch.valid.all()


def placed(plane: np.ndarray, place: Placement) -> np.ndarray:
    """[H, W] or [H, W, C]: the window, then the symmetry."""
    window = np.s_[place.top : place.top + place.side, place.left : place.left + place.side]
    return apply_symmetry(np.ascontiguousarray(plane[window]), place.symmetry)


def test_views_mask_and_response_are_cropped_and_turned_alike(manifest: Manifest) -> None:
    augment = Augment.model_construct(
        flips=True, crop_px=2, brightness=0.0, contrast=0.0, saturation=0.0, stain=0.0
    )  # a window below the smallest valid size
    entries, views = list(range(8)), Views(2, SIDE)
    (batch,) = batches(manifest, [entries], [table(*entries)], augment=augment, seed=5, epoch=2, views=views)
    places = draw_placements(augment, draw_numbers(5, 2, TILES, np.zeros(8, np.int64)), SIDE, views)
    assert len({place.symmetry for place in places}) > 3
    assert len({(place.left, place.top) for place in places}) > 2
    assert batch.teacher is not None
    assert batch.mask is not None
    assert batch.response is not None
    assert batch.student.shape == (8, 3, 1, 1)
    assert batch.teacher.shape == (8, 3, 2, 2)
    assert batch.mask.shape == (8, 2, 2)
    assert batch.response.shape == (8, 1, 2, 2)
    read = levels_to_logits(batch.response).numpy()
    for entry, place in zip(entries, places, strict=True):
        teacher = placed(pixels(entry), place)
        assert np.array_equal(batch.teacher[entry].permute(1, 2, 0).numpy(), teacher)
        assert np.abs(batch.student[entry, :, 0, 0].numpy() - teacher.mean((0, 1))).max() <= 0.5
        assert np.array_equal(batch.mask[entry].numpy(), placed(classes(entry), place))
        response = apply_symmetry_to_planes(
            np.ascontiguousarray(
                logits(entry)[:, place.top : place.top + place.side, place.left : place.left + place.side]
            ),
            place.symmetry,
        )
        assert np.abs(read[entry] - response).max() <= STEP / 2 + 1e-6


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        ({"image": b"\xff\xd8\xff no image"}, ""),
        ({"image": b""}, ""),
        ({"image": png(np.zeros((8, 8, 3), np.uint8))}, "8x8 px instead of 4x4"),
        ({"mask": None}, "it has no mask"),
        ({"mask": b"no mask"}, "mask"),
        ({"response": b""}, "the teacher had no response to it"),
        ({"response": b"damaged"}, "its response"),
    ],
    ids=["jpeg", "empty", "size", "no mask", "mask", "no response", "response"],
)
def test_an_unusable_tile_is_named_and_masked_out(
    manifest: Manifest, caplog: pytest.LogCaptureFixture, spoilt: dict[str, object], reason: str
) -> None:
    tables = [table(0, 2), table(6, **spoilt)]
    take_counts()
    with caplog.at_level(logging.WARNING, "histill"):
        (batch,) = batches(manifest, [[0, 6, 2]], tables, max_corrupt=1)
    assert take_counts() == {"undecodable_tiles": 1}
    assert batch.valid.tolist() == [True, False, True]
    assert batch.index.tolist() == [10, 16, 12]  # it counts as seen
    assert np.array_equal(batch.student[1].permute(1, 2, 0).numpy(), pixels(0))  # batch statistics see no black tile
    assert batch.mask is not None
    assert batch.mask[1].sum() == 0
    assert batch.response is not None
    assert (batch.response[1] == ZERO).all()
    (line,) = caplog.messages
    assert "tile tile-16 in shard s3://bucket/set/shards/4.parquet cannot be used" in line
    assert reason in line
    with pytest.raises(InputError, match=r"tile tile-16 in shard s3://bucket/set/shards/4\.parquet .*allows 0"):
        batches(manifest, [[0, 6, 2]], tables)


def test_the_limit_counts_over_batches(manifest: Manifest) -> None:
    spoilt = table(1, 3, 5, image=b"spoilt")
    assert len(batches(manifest, [[1], [3], [5]], [spoilt], max_corrupt=3)) == 3
    with pytest.raises(InputError, match=r"tile-15 .*number 3 and max_corrupt allows 2"):
        batches(manifest, [[1], [3], [5]], [spoilt], max_corrupt=2)


def test_a_stream_that_ends_early_is_no_silent_loss(manifest: Manifest) -> None:
    steps = steps_for([[0], [1]], [[0], [1]])
    with pytest.raises(RuntimeError, match="ended before step 1 was filled"):
        list(running(manifest, steps, iter([table(0)])))


def test_a_reader_that_fails_is_heard(manifest: Manifest) -> None:
    def tables() -> Iterator[pa.Table]:
        yield table(0)
        raise InputError("shard a is gone", code="tiles-damaged")

    with pytest.raises(InputError, match="shard a is gone"):
        list(running(manifest, steps_for([[0], [1]], [[0], [1]]), tables()))


def test_a_consumer_that_leaves_ends_the_decoders_too(manifest: Manifest) -> None:
    before = set(threading.enumerate())
    steps = steps_for([[entry] for entry in range(8)], [[entry] for entry in range(8)])
    consumed = Prefetched(running(manifest, steps, (table(entry) for entry in range(8))))
    next(consumed)
    consumed.close()
    assert set(threading.enumerate()) <= before
