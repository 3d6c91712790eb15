"""Batches of a fixed size from encoded rows: what is masked, what is named, what is refused."""

import io
import logging
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from histill.errors import InputError
from histill.stream import geometry
from histill.stream.batches import Decoding, TileBatch, ahead, decoded_batches
from histill.stream.responses import STEP, encode
from histill.tiles.manifest import Header, Manifest
from histill.tiles.schema import MANIFEST

pytestmark = pytest.mark.unit

SIDE = 4


def pixels(tile: int) -> np.ndarray:
    return np.random.default_rng(tile).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)


def classes(tile: int) -> np.ndarray:
    return np.random.default_rng(tile).integers(0, 2, (SIDE, SIDE)).astype(np.uint8)


def logits(tile: int) -> np.ndarray:
    return np.random.default_rng(tile).normal(0, 3, (1, SIDE, SIDE)).astype(np.float32)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def table(*tiles: int, **spoilt: object) -> pa.Table:
    """Encoded rows of `tiles`; `spoilt` replaces a column's value in all of them."""
    rows = [
        {"tile": tile, "image": png(pixels(tile)), "mask": png(classes(tile)), "response": encode(logits(tile))}
        | spoilt
        for tile in tiles
    ]
    types = [("tile", pa.int64()), ("image", pa.binary()), ("mask", pa.binary()), ("response", pa.binary())]
    return pa.Table.from_pylist(rows, schema=pa.schema(types))


@pytest.fixture
def manifest() -> Manifest:
    rows = [
        dict.fromkeys(("tile_id", "slide", "case", "content"), f"tile-{tile}")
        | {"x": 0, "y": 0, "mpp": 0.5, "size_px": SIDE, "has_mask": True, "split": "train"}
        | {"shard": f"shards/{tile // 4}.parquet", "row_group": 0, "row": tile % 4}
        for tile in range(8)
    ]
    header = Header(digest="", tiles=8, tile_px=SIDE, mpp=0.5, labels=(), splits={"train": 8}, masks=8, ingest="")
    return Manifest("s3://bucket/set", header, pa.Table.from_pylist(rows, schema=MANIFEST))


def decoding(**changes: object) -> Decoding:
    values: dict[str, object] = {
        "tile_px": SIDE,
        "masks": True,
        "response_channels": 1,
        "threads": 2,
        "max_corrupt": 0,
        "flips_seed": None,
    }
    return Decoding(**values | changes)  # type: ignore[arg-type]


def batches(
    manifest: Manifest, plan: list[list[int]], tables: list[pa.Table], planned: list[int] | None = None, **how: object
) -> list[TileBatch]:
    rows = np.array(plan)
    counts = np.array(planned or (rows >= 0).sum(1))
    return list(decoded_batches(iter(tables), rows, counts, manifest, decoding(**how)))


def test_batches_follow_the_plan_whatever_the_order_of_the_tables(manifest: Manifest) -> None:
    plan = [[5, 0], [3, 7], [1, 2]]
    made = batches(manifest, plan, [table(7, 0, 2), table(5, 1), table(3)], planned=[4, 4, 3])
    assert [batch.index.tolist() for batch in made] == plan
    assert [batch.planned for batch in made] == [4, 4, 3]
    for batch in made:
        assert batch.valid.all()
        assert batch.mask is not None
        assert batch.response is not None
        for slot, tile in enumerate(batch.index.tolist()):
            assert np.array_equal(batch.tiles[slot].permute(1, 2, 0).numpy(), pixels(tile))
            assert np.array_equal(batch.mask[slot].numpy(), classes(tile))
            assert np.abs(batch.response[slot].numpy() - logits(tile)).max() <= STEP / 2 + 1e-6


def test_padding_is_masked_out(manifest: Manifest) -> None:
    (batch,) = batches(manifest, [[4, -1, 6, -1]], [table(4, 6)])
    assert batch.valid.tolist() == [True, False, True, False]
    assert batch.index.tolist() == [4, -1, 6, -1]
    assert batch.tiles[[1, 3]].sum() == 0
    (empty,) = batches(manifest, [[-1, -1]], [])
    assert not empty.valid.any()


def test_masks_and_responses_are_left_out_unless_asked_for(manifest: Manifest) -> None:
    (batch,) = batches(manifest, [[0]], [table(0)], masks=False, response_channels=0)
    assert batch.mask is None
    assert batch.response is None


def test_image_mask_and_response_are_flipped_alike(manifest: Manifest) -> None:
    tiles = list(range(8))
    (batch,) = batches(manifest, [tiles], [table(*tiles)], flips_seed=5, epoch=2)
    drawn = [geometry.draw(5, 2, tile) for tile in tiles]
    assert len(set(drawn)) > 1
    assert batch.mask is not None
    assert batch.response is not None
    for tile, symmetry in zip(tiles, drawn, strict=True):
        expected = geometry.apply(pixels(tile), symmetry, axes=(0, 1)).transpose(2, 0, 1)
        assert np.array_equal(batch.tiles[tile].numpy(), expected)
        assert np.array_equal(batch.mask[tile].numpy(), geometry.apply(classes(tile), symmetry, axes=(0, 1)))
        response = geometry.apply(logits(tile), symmetry, axes=(1, 2))
        assert np.abs(batch.response[tile].numpy() - response).max() <= STEP / 2 + 1e-6


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        ({"image": b"\xff\xd8\xff no image"}, ""),
        ({"image": png(np.zeros((8, 8, 3), np.uint8))}, "8x8 px instead of 4x4"),
        ({"mask": None}, "it has no mask"),
        ({"mask": b"no mask"}, "mask"),
        ({"response": b""}, "the teacher had no response to it"),
        ({"response": b"damaged"}, "its response"),
    ],
    ids=["jpeg", "size", "no mask", "mask", "no response", "response"],
)
def test_an_unusable_tile_is_named_and_masked_out(
    manifest: Manifest, caplog: pytest.LogCaptureFixture, spoilt: dict[str, object], reason: str
) -> None:
    tables = [table(0, 2), table(6, **spoilt)]
    with caplog.at_level(logging.WARNING, "histill"):
        (batch,) = batches(manifest, [[0, 6, 2]], tables, max_corrupt=1)
    assert batch.valid.tolist() == [True, False, True]
    assert batch.index.tolist() == [0, 6, 2]  # it counts as seen
    (line,) = caplog.messages
    assert "tile tile-6 in shard s3://bucket/set/shards/1.parquet cannot be used" in line
    assert reason in line
    with pytest.raises(InputError, match=r"tile tile-6 in shard s3://bucket/set/shards/1\.parquet .*allows 0"):
        batches(manifest, [[0, 6, 2]], tables)


def test_the_limit_counts_over_batches(manifest: Manifest) -> None:
    spoilt = table(1, 3, 5, image=b"spoilt")
    assert len(batches(manifest, [[1], [3], [5]], [spoilt], max_corrupt=3)) == 3
    with pytest.raises(InputError, match=r"tile-5 .*number 3 and max_corrupt allows 2"):
        batches(manifest, [[1], [3], [5]], [spoilt], max_corrupt=2)


def test_a_stream_that_ends_early_is_no_silent_loss(manifest: Manifest) -> None:
    with pytest.raises(RuntimeError, match="ended before step 1 of 2"):
        batches(manifest, [[0], [1]], [table(0)])


def threads_ahead() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches-ahead"]


def join_all() -> None:
    for thread in threads_ahead():
        thread.join(timeout=10)
    assert not threads_ahead()


def test_ahead_keeps_order_and_ends_its_thread() -> None:
    assert list(ahead(iter(range(50)))) == list(range(50))
    join_all()


def test_ahead_runs_ahead_but_no_further_than_asked() -> None:
    produced: list[int] = []
    full = threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            produced.append(number)
            if number == 3:  # one handed over, two waiting, one in the producer's hand
                full.set()
            yield number

    running = ahead(items(), depth=2)
    assert next(running) == 0
    assert full.wait(10)
    assert len(produced) == 4
    running.close()  # type: ignore[attr-defined]
    join_all()
    assert len(produced) <= 5


@pytest.mark.parametrize("error", [InputError("shard a is gone"), KeyboardInterrupt()])
def test_ahead_hands_on_exceptions(error: BaseException) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise error

    running = ahead(items())
    assert next(running) == 1
    with pytest.raises(type(error)) as caught:
        next(running)
    assert caught.value is error
    join_all()


def test_a_consumer_that_leaves_ends_the_decoders_too(manifest: Manifest) -> None:
    def consume(make: Callable[[], Iterator[TileBatch]]) -> None:
        running = ahead(make())
        next(running)
        running.close()  # type: ignore[attr-defined]

    plan = np.arange(8).reshape(8, 1)
    tables = [table(tile) for tile in range(8)]
    consume(lambda: decoded_batches(iter(tables), plan, np.ones(8, int), manifest, decoding()))
    join_all()
    for thread in threading.enumerate():
        if thread.name.startswith("decode"):
            thread.join(timeout=10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
