"""A tile set opened in a notebook streams the same tiles as a run does, also through torch's own loader."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import histill
from histill.errors import InputError
from histill.stream.tile_batch import TileBatch
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> histill.TileSet:
    folder = tmp_path_factory.mktemp("opened")
    tile_set(folder, tiles=24, tile_px=64, labels=True)
    return histill.open_tiles(str(folder))


def shown(batches: "list[TileBatch]") -> list[int]:
    return [int(index) for batch in batches for index in batch.index[batch.valid]]


def test_what_a_tile_set_says_of_itself(tiles: histill.TileSet) -> None:
    assert (len(tiles), tiles.tile_px, tiles.mpp) == (24, 64, 0.5)
    assert sum(tiles.splits.values()) == 24
    assert tiles.table.num_rows == 24
    assert repr(tiles).startswith(f"TileSet('{tiles.uri}': 24 tiles of 64 px at 0.5 um/px")


def test_an_epoch_shows_each_tile_once_in_an_order_of_its_own(tiles: histill.TileSet) -> None:
    loader = tiles.stream("train", student_px=32, teacher_px=64, batch_size=5, seed=3)
    first, second = list(loader), list(loader)
    assert len(first) == len(loader) == -(-tiles.splits["train"] // 5)
    assert sorted(shown(first)) == sorted(shown(second)) == tiles.manifest.rows_of("train").tolist()
    assert shown(first) != shown(second)
    assert first[0].student.shape == (5, 3, 32, 32)
    assert first[0].teacher is not None
    assert first[0].teacher.shape == (5, 3, 64, 64)
    assert first[0].student.dtype == torch.uint8
    loader.set_epoch(0)
    assert shown(list(loader)) == shown(first)


def test_labels_are_places_in_the_classes(tiles: histill.TileSet) -> None:
    names = tiles.table["label"].to_pylist()
    for batch in tiles.stream("train", batch_size=4):
        assert batch.label is not None
        found = [tiles.classes[int(label)] for label in batch.label[batch.valid]]
        assert found == [names[int(row)] for row in batch.index[batch.valid]]


def test_other_splits_are_shown_in_order_and_whole(tiles: histill.TileSet) -> None:
    batches = list(tiles.stream("test", batch_size=3, masks=True))
    assert shown(batches) == tiles.manifest.rows_of("test").tolist()
    assert all(batch.valid.all() for batch in batches)
    assert batches[0].mask is not None
    assert batches[0].mask.shape[1:] == (64, 64)


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_loader_passes_batches_through(tiles: histill.TileSet, workers: int) -> None:
    loader = tiles.stream("train", batch_size=4, seed=1)
    expected = sorted(shown(list(loader)))
    loader.set_epoch(0)
    found = [batch.to("cpu") for batch in DataLoader(loader, batch_size=None, num_workers=workers)]
    assert sorted(shown(found)) == expected


def test_windows_and_flips_are_drawn_anew(tiles: histill.TileSet) -> None:
    loader = tiles.stream("train", student_px=64, batch_size=8, augment={"flips": True, "crop_px": 32})
    first, second = next(iter(loader)), next(iter(loader))
    assert first.student.shape == (8, 3, 32, 32)
    assert not np.array_equal(first.student.numpy(), second.student.numpy())


def test_what_cannot_be_streamed_is_refused_before_the_loop(tiles: histill.TileSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"split 'other' of .* is empty"):
        tiles.stream("other")
    with pytest.raises(InputError, match=r"augment\.crop_px is 65"):
        tiles.stream("train", augment={"crop_px": 65})
    with pytest.raises(InputError, match=r"stream: .augment\.crop. .*crop_px"):
        tiles.stream("train", augment={"crop": 32})
    with pytest.raises(InputError, match="holds no finished responses"):
        tiles.stream("train", responses=str(tmp_path))
    with pytest.raises(InputError, match=r"nowhere.*no tile set|nowhere"):
        histill.open_tiles(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"batch_size": 0}, "'batch_size' is 0: "),
        ({"batch_size": -1}, "'batch_size' is -1: "),
        ({"batch_size": 2.5}, "'batch_size' is 2.5: "),
        ({"batch_size": "4"}, "'batch_size' is '4': "),
        ({"student_px": "32"}, "'student_px' is '32': "),
        ({"student_px": -5}, "'student_px' is -5: "),
        ({"student_px": 0}, "'student_px' is 0: "),
        ({"student_px": 5000}, "student_px is 5000, more than the tiles' own 64 px"),
        ({"teacher_px": 0}, "'teacher_px' is 0: "),
        ({"teacher_px": 65}, "teacher_px is 65, more than the tiles' own 64 px"),
        ({"threads": 0}, "'threads' is 0: "),
        ({"seed": "a"}, "'seed' is 'a': "),
        ({"balance": "nope"}, "'balance' is 'nope': input should be 'label', 'slide'"),
        ({"max_corrupt": -1}, "'max_corrupt' is -1: "),
        ({"shuffle": "yes"}, "'shuffle' is 'yes': true or false was expected"),
        ({"responses": 3}, "'responses' holds the number 3"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(tiles: histill.TileSet, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        tiles.stream("train", **keys)
    assert caught.value.code in ("config-wrong-value", "config-unquoted", "resolution-too-fine")
    assert str(caught.value).count("\n") == 0


def test_masks_and_groups_that_a_set_lacks_are_refused_at_the_call(
    tile_set: Callable[..., Manifest], tmp_path: Path
) -> None:
    tile_set(tmp_path, tiles=8, tile_px=32, masks=False)
    bare = histill.open_tiles(str(tmp_path))
    with pytest.raises(InputError, match="has no masks; leave masks out"):
        bare.stream("train", masks=True)
    with pytest.raises(InputError, match=r"tiles of .* have no label; balance by another column"):
        bare.stream("train", balance="label")
    assert len(list(bare.stream("train", balance="case", batch_size=3))) > 0


def test_cached_answers_come_with_the_tiles(tiles: histill.TileSet, tmp_path: Path) -> None:
    cached = histill.cache_responses(tiles=tiles, teacher={"classical": True}, output=tmp_path, local=True)
    batch = next(iter(tiles.stream("train", batch_size=4, responses=cached.uri)))
    assert batch.response is not None
    assert batch.response.shape == (4, 1, 64, 64)
    assert histill.cache_responses(tiles=tiles, teacher={"classical": True}, output=tmp_path, local=True).reused
