"""The stream of one worker: what an epoch brings does not depend on how many workers share it, nor on a restart."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from histill.config.common import Storage
from histill.stream.batches import TileBatch
from histill.stream.read import Source, read_groups
from histill.stream.tile_stream import TileStream
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.unit

BATCH = 4


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=27, tile_px=32)  # 18 to train: the last batch is padded


def stream(manifest: Manifest, worker: int = 0, workers: int = 1, split: str = "train") -> TileStream:
    return TileStream(
        manifest=manifest,
        source=Source(manifest.uri, Storage(), masks=True),
        split=split,
        batch_size=BATCH,
        worker=worker,
        workers=workers,
        read=read_groups,
    )


def same(first: TileBatch, second: TileBatch) -> bool:
    assert first.mask is not None
    assert second.mask is not None
    return (
        torch.equal(first.index, second.index)
        and torch.equal(first.tiles, second.tiles)
        and torch.equal(first.mask, second.mask)
        and torch.equal(first.valid, second.valid)
        and first.planned == second.planned
    )


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_exact_pass_brings_every_tile_once(manifest: Manifest, workers: int, split: str) -> None:
    passes = [list(stream(manifest, worker, workers, split).exact_pass()) for worker in range(workers)]
    assert len({len(batches) for batches in passes}) == 1  # workers that meet at each step must have equally many
    seen = np.concatenate([batch.index[batch.valid].numpy() for batches in passes for batch in batches])
    assert sorted(seen) == manifest.rows_of(split).tolist()
    assert sum(batch.planned for batch in passes[0]) == len(seen)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_global_batches_are_those_of_one_worker(manifest: Manifest, workers: int) -> None:
    alone = list(stream(manifest).training_epoch(3, seed=1, flips=True))
    assert len(alone) == stream(manifest).steps == 5
    shares = [
        list(stream(manifest, worker, workers).training_epoch(3, seed=1, flips=True)) for worker in range(workers)
    ]
    for step, whole in enumerate(alone):
        parts = [batches[step] for batches in shares]
        assert torch.equal(torch.cat([part.tiles for part in parts]), whole.tiles)
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        assert {part.planned for part in parts} == {whole.planned}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("from_step", [1, 4, 5])
def test_an_epoch_goes_on_from_a_step(manifest: Manifest, workers: int, from_step: int) -> None:
    for worker in range(workers):
        mine = stream(manifest, worker, workers)
        whole = list(mine.training_epoch(2, seed=1, flips=True))
        rest = list(mine.training_epoch(2, seed=1, flips=True, from_step=from_step))
        assert len(rest) == len(whole) - from_step
        assert all(same(first, second) for first, second in zip(rest, whole[from_step:], strict=True))


def test_an_epoch_brings_every_tile_once_and_others_in_another_order(manifest: Manifest) -> None:
    orders = []
    for epoch in range(2):
        batches = list(stream(manifest).training_epoch(epoch, seed=1, flips=False))
        seen = torch.cat([batch.index[batch.valid] for batch in batches])
        assert sorted(seen.tolist()) == manifest.rows_of("train").tolist()
        assert sum(batch.planned for batch in batches) == len(seen)
        orders.append(seen.tolist())
    assert orders[0] != orders[1]
