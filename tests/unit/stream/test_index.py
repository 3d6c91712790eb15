"""Locating entries: each row group is read once for its opened entries, and balanced epochs stay consistent."""

import re
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histill.errors import InputError
from histill.stream.index import SampleIndex, balance_groups
from histill.stream.plan import PADDING, EpochPlan, plan_steps
from histill.tiles.manifest import Header, Manifest
from histill.tiles.schema import MANIFEST
from histill.tiles.tile_rows import hold_rows
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit


def manifest_of(splits: list[str], labels: list[str | None] | None = None, per_group: int = 3) -> Manifest:
    """Tile i is of `splits[i]`; row groups of `per_group` tiles, two in a shard; a new slide every 5 tiles."""
    rows = [
        {"tile_id": f"tile-{tile}", "slide": f"slide-{tile // 5}", "case": f"case-{tile // 10}", "content": ""}
        | {"x": 0, "y": 0, "mpp": 0.5, "size_px": 4, "has_mask": False, "split": split}
        | {"label": labels[tile] if labels else None, "shard": f"shards/{tile // (2 * per_group):04d}.parquet"}
        | {"row_group": tile // per_group % 2, "row": tile % per_group}
        for tile, split in enumerate(splits)
    ]
    counts = {split: splits.count(split) for split in sorted(set(splits))}
    header = Header(
        digest="", table="", tiles=len(splits), tile_px=4, mpp=0.5, labels=(), splits=counts, masks=0, ingest=""
    )
    return Manifest("s3://bucket/set", header, hold_rows(pa.Table.from_pylist(rows, schema=MANIFEST)))


interleaved = st.lists(st.sampled_from(["train", "train", "val"]), min_size=1, max_size=60).map(
    lambda splits: ["train", *splits]
)


def check_consistent(places: SampleIndex, manifest: Manifest) -> None:
    """Each entry's tile, row and row group are those of the manifest."""
    rows = read_table(manifest).to_pylist()
    assert places.starts[0] == 0
    assert places.starts[-1] == len(places.tiles)
    assert (np.diff(places.starts) > 0).all()  # no row group without entries
    tiles = np.asarray(places.tiles)
    assert (np.diff(tiles) >= 0).all()
    for start, end in zip(places.starts[:-1], places.starts[1:], strict=True):
        (read,) = places.reads(np.arange(start, end))
        for tile, row in zip(tiles[start:end], read.rows, strict=True):
            place = rows[tile]
            assert (place["row"], place["shard"], place["row_group"]) == (row, read.shard, read.row_group)


@given(interleaved, st.lists(st.integers(0, 60), max_size=3))
def test_a_manifest_in_chunks_has_the_same_places(splits: list[str], cuts: list[int]) -> None:
    whole = manifest_of(splits)
    edges = sorted({0, len(splits), *(cut for cut in cuts if cut < len(splits))})
    parts = [read_table(whole).slice(begin, end - begin) for begin, end in pairwise(edges)]
    chunked = SampleIndex.of(Manifest(whole.uri, whole.header, hold_rows(pa.concat_tables(parts))), "train")
    check_consistent(chunked, whole)


@given(interleaved, st.integers(1, 7))
def test_places_are_those_of_the_manifest(splits: list[str], per_group: int) -> None:
    manifest = manifest_of(splits, per_group=per_group)
    places = SampleIndex.of(manifest, "train")
    tiles = np.asarray(places.tiles).tolist()
    assert (
        tiles == [tile for tile, split in enumerate(splits) if split == "train"] == manifest.rows_of("train").tolist()
    )
    check_consistent(places, manifest)
    groups = {tile // per_group for tile in tiles}
    assert len(places.starts) - 1 == len(groups)
    entries = np.arange(len(places.tiles))
    assert places.copies_of(entries).tolist() == [0] * len(entries)


def test_places_of_a_table_in_chunks() -> None:
    whole = manifest_of(["train", "val"] * 12)
    chunks = pa.concat_tables([read_table(whole).slice(start, 7) for start in range(0, 24, 7)])
    chunked = Manifest(whole.uri, whole.header, hold_rows(chunks))
    one, other = (SampleIndex.of(each, "train") for each in (whole, chunked))
    for name in ("tiles", "starts", "groups"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    check_consistent(other, whole)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(InputError, match=r"split 'test' .* is empty"):
        SampleIndex.of(manifest_of(["train"]), "test")


@given(interleaved, st.integers(1, 7), st.data())
def test_reads_cover_what_is_opened_once_for_each_row_group(
    splits: list[str], per_group: int, draw: st.DataObject
) -> None:
    manifest = manifest_of(splits, per_group=per_group)
    places = SampleIndex.of(manifest, "train")
    entries = np.array(sorted(draw.draw(st.sets(st.integers(0, len(places.tiles) - 1)))), np.int64)
    reads = places.reads(entries)
    assert len(reads) == len({(read.shard, read.row_group) for read in reads})
    assert [entry for read in reads for entry in read.entries.tolist()] == entries.tolist()
    rows = read_table(manifest).to_pylist()
    for read in reads:
        for row, tile in zip(read.rows, places.tiles_of(read.entries), strict=True):
            place = rows[tile]
            assert (place["shard"], place["row_group"], place["row"]) == (read.shard, read.row_group, row)


def test_padding_stays_padding() -> None:
    places = SampleIndex.of(manifest_of(["val", "train", "train"]), "train")
    assert places.tiles_of(np.array([1, PADDING, 0])).tolist() == [2, PADDING, 1]


@settings(max_examples=60)
@given(interleaved, st.integers(1, 7), st.integers(0, 9), st.data())
def test_balanced_places_are_consistent(splits: list[str], per_group: int, epoch: int, draw: st.DataObject) -> None:
    labels = draw.draw(st.lists(st.sampled_from("abc"), min_size=len(splits), max_size=len(splits)))
    manifest = manifest_of(splits, labels, per_group)  # type: ignore[arg-type]
    groups = balance_groups(manifest, manifest.rows_of("train"), "label")
    once = SampleIndex.of(manifest, "train")
    places = once.balanced(groups, seed=3, epoch=epoch)
    check_consistent(places, manifest)
    assert len(places.tiles) == len(once.tiles)
    label_of = [labels[tile] for tile in places.tiles]
    shares = [label_of.count(label) for label in sorted({labels[tile] for tile in np.asarray(once.tiles)})]
    assert max(shares) - min(shares) <= 1
    copies = places.copies_of(np.arange(len(places.tiles)))
    for tile in np.unique(places.tiles):
        mine = copies[places.tiles == tile]
        assert mine.tolist() == list(range(len(mine)))
    shuffled = np.random.default_rng(0).permutation(len(places.tiles))
    assert np.array_equal(places.copies_of(shuffled), copies[shuffled])


def test_a_balanced_epoch_opens_a_tile_for_each_of_its_copies() -> None:
    labels = ["rare", *["common"] * 29]
    manifest = manifest_of(["train"] * 30, labels)  # type: ignore[arg-type]
    places = SampleIndex.of(manifest, "train").balanced(
        balance_groups(manifest, manifest.rows_of("train"), "label"), seed=0, epoch=0
    )
    assert (places.tiles == 0).sum() == 15
    plan = EpochPlan(places.starts, 5, 0, 0, 8)
    seen = [entry for step in plan_steps(plan, 0, 1) for read in places.reads(step.opened) for entry in read.entries]
    assert sorted(seen) == list(range(30))


@pytest.mark.parametrize(("by", "groups"), [("slide", 6), ("case", 3), ("label", 2)])
def test_groups_to_balance(by: str, groups: int) -> None:
    manifest = manifest_of(["train"] * 30, ["a", "b"] * 15)
    numbers = balance_groups(manifest, manifest.rows_of("train"), by)
    assert numbers.dtype == np.int64
    assert sorted(set(numbers.tolist())) == list(range(groups))
    values = read_table(manifest)[by].to_pylist()
    assert len(set(zip(values, numbers.tolist(), strict=True))) == groups


def test_tiles_without_the_column_are_refused() -> None:
    manifest = manifest_of(["train"] * 4 + ["val"], ["a", None, "b", None, "c"])
    said = "2 of 4 tiles of s3://bucket/set have no label; balance by another column, "
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        balance_groups(manifest, manifest.rows_of("train"), "label")
    assert "\n" not in str(caught.value)
    assert balance_groups(manifest, manifest.rows_of("val"), "label").tolist() == [0]
