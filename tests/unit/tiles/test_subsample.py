"""Subsampled cases of a split, and weights that balance the classes."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from histill.errors import InputError
from histill.tiles.manifest import Header, Manifest
from histill.tiles.schema import MANIFEST
from histill.tiles.subsample import balance_weights, subsample_cases
from histill.tiles.tile_rows import hold_rows
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

Tile = tuple[str, str, str | None]  # case, split, label


def manifest_of(tiles: list[Tile]) -> Manifest:
    rows = [
        dict.fromkeys(MANIFEST.names, 0)
        | dict.fromkeys(("slide", "shard", "content"), "")
        | {"tile_id": str(number), "case": case, "split": split, "label": label, "has_mask": False}
        for number, (case, split, label) in enumerate(tiles)
    ]
    header = Header(
        digest="",
        table="",
        tiles=len(tiles),
        tile_px=32,
        mpp=0.5,
        labels=(),
        splits=dict(Counter(split for _, split, _ in tiles)),
        masks=0,
        ingest="",
    )
    return Manifest("tiles", header, hold_rows(pa.Table.from_pylist(rows, schema=MANIFEST)))


def one_label_each(cases: int, labels: int) -> Manifest:
    """Cases of three tiles with the same label, and as many cases in another split."""
    return manifest_of(
        [
            (f"{split}-{case}", split, f"label {case % labels}")
            for split in ("train", "val")
            for case in range(cases)
            for _ in range(3)
        ]
    )


CASES = st.sampled_from([f"case {number}" for number in range(9)])
TILES = st.lists(st.tuples(CASES, st.sampled_from(["a", "b", "c", None])), min_size=1, max_size=40)


@given(TILES, TILES, st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 99))
def test_few_cases_are_part_of_more_and_have_every_label(
    train: list[tuple[str, str | None]],
    val: list[tuple[str, str | None]],
    one: float,
    other: float,
    seed: int,
) -> None:
    tiles: list[Tile] = [(case, "train", label) for case, label in train]
    tiles += [(f"val {case}", "val", label) for case, label in val]
    manifest, (smaller, larger) = manifest_of(tiles), sorted((one, other))
    few, more = (subsample_cases(manifest, "train", fraction, seed) for fraction in (smaller, larger))
    everything = {case for case, _ in train}
    assert few <= more <= everything == subsample_cases(manifest, "train", 1.0, seed)
    assert {label for case, label in train if case in few} == {label for _, label in train}
    assert few == subsample_cases(manifest, "train", smaller, seed)


@pytest.mark.parametrize(("fraction", "of_each"), [(0.05, 1), (0.25, 3), (0.5, 5), (1.0, 10)])
def test_the_fraction_holds_for_each_label(fraction: float, of_each: int) -> None:
    chosen = subsample_cases(one_label_each(40, 4), "train", fraction, 0)
    labels = Counter(int(case.removeprefix("train-")) % 4 for case in chosen)
    assert labels == dict.fromkeys(range(4), of_each)


def test_the_seed_says_which_cases() -> None:
    manifest = one_label_each(40, 4)
    drawn = {subsample_cases(manifest, "train", 0.25, seed) for seed in range(5)}
    assert len(drawn) == 5
    assert frozenset.union(*drawn) > next(iter(drawn))


def test_the_order_of_the_tiles_says_nothing() -> None:
    manifest = one_label_each(20, 3)
    table = read_table(manifest)
    backwards = Manifest(manifest.uri, manifest.header, hold_rows(table.take(np.arange(len(table))[::-1])))
    assert subsample_cases(manifest, "train", 0.3, 1) == subsample_cases(backwards, "train", 0.3, 1)


def test_cases_without_labels_are_drawn_alike() -> None:
    manifest = manifest_of([(f"case {number // 2}", "train", None) for number in range(40)])
    assert len(subsample_cases(manifest, "train", 0.25, 0)) == 5


def test_a_label_that_is_nowhere_the_most_frequent_is_found() -> None:
    tiles: list[Tile] = [(f"case {case}", "train", "common") for case in range(20) for _ in range(3)]
    manifest = manifest_of([*tiles, ("case 3", "train", "rare")])
    for seed in range(5):
        assert "case 3" in subsample_cases(manifest, "train", 0.05, seed)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(InputError, match="split 'test' of tiles is empty"):
        subsample_cases(one_label_each(4, 2), "test", 0.5, 0)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(5, 7))
def test_balanced_weights_give_each_class_the_same_say(drawn: list[int], classes: int) -> None:
    labels = np.array(drawn, np.int64)
    weights = balance_weights(np.bincount(labels, minlength=classes))
    assert len(weights) == classes
    counts = Counter(drawn)
    said = [weights[label] * counts[label] for label in counts]
    assert said == pytest.approx([len(drawn) / len(counts)] * len(counts))
    assert sum(weights[label] for label in drawn) / len(drawn) == pytest.approx(1.0)
    assert all(weights[label] == 0.0 for label in range(classes) if label not in counts)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_even_classes_weigh_1(drawn: list[int]) -> None:
    assume(len(set(drawn)) == 4)
    labels = np.array(sorted(set(drawn)) * 3)
    assert balance_weights(np.bincount(labels, minlength=4)) == pytest.approx((1.0,) * 4)
