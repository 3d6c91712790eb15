"""The narrow form of a manifest's rows: held in memory or mapped, it says what the table says."""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histill.config.common import ShardCache, Storage
from histill.errors import InputError
from histill.tiles import manifest_file, tile_rows
from histill.tiles.contents import content_hash, find_repeated
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import TABLE_NAME, read_manifest, write_manifest
from histill.tiles.row_runs import RowRuns
from histill.tiles.schema import MANIFEST
from histill.tiles.tile_rows import TileRows, copy_rows, hold_rows, map_rows
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

values = st.fixed_dictionaries(
    {
        "slide": st.sampled_from("abc"),
        "case": st.sampled_from(["x", "ü"]),
        "label": st.sampled_from([None, "", "t"]),
        "split": st.sampled_from(["train", "val"]),
        "mpp": st.sampled_from([0.25, 0.5]),
        "has_mask": st.booleans(),
        "shard": st.sampled_from(["s/0", "s/1"]),
        "row_group": st.integers(0, 2),
        "row": st.integers(0, 3),
        "size_px": st.just(8),
        "x": st.integers(0, 9),
        "y": st.integers(0, 9),
        "content": st.integers(0, 3),
    }
)
tables = st.lists(st.tuples(values, st.integers(1, 5)), min_size=1, max_size=12)  # rows, each repeated


def table_of(drawn: list[tuple[dict[str, object], int]]) -> pa.Table:
    rows = [
        each | {"content": content_hash(b"%d" % each["content"], b"m" if each["has_mask"] else None)}
        for each, repeats in drawn
        for _ in range(repeats)
    ]
    return pa.Table.from_pylist([row | {"tile_id": str(number)} for number, row in enumerate(rows)], schema=MANIFEST)


def mapped(table: pa.Table) -> TileRows:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, TABLE_NAME)
        pq.write_table(table, path, row_group_size=5)
        copy_rows(path, Path(folder))
        return map_rows(Path(folder))


@settings(max_examples=60)
@given(tables, st.integers(1, 40), st.data())
def test_any_rows_are_read_as_they_were_written(
    drawn: list[tuple[dict[str, object], int]], piece: int, draw: st.DataObject
) -> None:
    table = table_of(drawn)
    chosen = np.array(draw.draw(st.lists(st.integers(0, len(table) - 1), max_size=9)), np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tile_rows, "_PIECE", piece)
        for rows in (hold_rows(table), mapped(table)):
            assert len(rows) == len(table)
            assert rows.read(MANIFEST.names, np.arange(len(table))).equals(table)
            assert rows.read(MANIFEST.names, chosen).equals(table.take(pa.array(chosen)))
            expected = rows.expected(1, len(table) - 1)
            assert expected.lists() == (table["tile_id"].to_pylist()[1:], table["content"].to_pylist()[1:])
            assert rows.places(chosen).tolist() == table["row"].take(pa.array(chosen)).to_pylist()


@given(tables)
def test_counts_and_splits_are_those_of_the_table(drawn: list[tuple[dict[str, object], int]]) -> None:
    table = table_of(drawn)
    manifest = Manifest("", None, hold_rows(table))  # type: ignore[arg-type]
    pairs = list(zip(table["split"].to_pylist(), table["label"].to_pylist(), strict=True))
    counted = manifest.count("split", "label")
    assert [pair for pair, _ in counted] == list(dict.fromkeys(pairs))
    assert dict(counted) == Counter(pairs)
    splits, cases = table["split"].to_pylist(), table["case"].to_pylist()
    for split, some in ((splits[0], None), (splits[-1], frozenset({cases[-1]}))):
        rows = [row for row, of in enumerate(splits) if of == split and (some is None or cases[row] in some)]
        assert manifest.rows_of(split, some).tolist() == rows
        without = [row for row in rows if not table["has_mask"][row].as_py()]
        assert manifest.without_mask(manifest.select(split, some)).tolist() == without
    content = table["content"].to_pylist()
    repeated = [row for row, each in enumerate(content) if content.count(each) > 1]
    assert find_repeated(manifest.rows.plain["content"]).tolist() == repeated


@given(st.sets(st.integers(0, 40)))
def test_runs_are_the_rows_that_they_were_made_of(chosen: set[int]) -> None:
    rows = np.array(sorted(chosen), np.int64)
    runs = RowRuns.of(rows)
    assert len(runs) == len(rows)
    assert np.asarray(runs).tolist() == rows.tolist()
    assert runs.has(np.arange(42)).tolist() == [row in chosen for row in range(42)]
    assert np.concatenate([np.zeros(0), *runs.pieces()]).tolist() == rows.tolist()
    assert (runs.firsts[1:] > runs.stops[:-1]).all()


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile_set: Callable[..., Manifest]) -> tuple[str, Storage]:
    """A tile set whose rows are mapped, and a storage with this node's folder."""
    manifest = tile_set(tmp_path / "tiles", tiles=24, tile_px=16)
    monkeypatch.setattr(manifest_file, "MAPPED_TILES", 1)
    return manifest.uri, Storage(cache=ShardCache(folder=str(tmp_path / "cache"), max_gb=1))


def test_a_large_set_is_mapped_from_one_copy(
    large: tuple[str, Storage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, storage = large
    held = pq.read_table(Path(uri, TABLE_NAME))
    first = read_manifest(uri, storage)
    assert read_table(first).equals(held)
    assert any(str(tmp_path / "cache" / "shared") in line for line in Path("/proc/self/maps").read_text().splitlines())
    Path(uri, TABLE_NAME).unlink()  # the copy is enough
    monkeypatch.setattr(manifest_file, "copy_rows", None)
    assert read_table(read_manifest(uri, storage)).equals(held)


def test_a_damaged_large_set_is_refused_and_leaves_no_copy(large: tuple[str, Storage], tmp_path: Path) -> None:
    uri, storage = large
    path = Path(uri, TABLE_NAME)
    data = path.read_bytes()
    for damage, said in ((data[:-30], "does not match its header's digest"), (None, r"manifest\.parquet is missing")):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(InputError, match=said):
            read_manifest(uri, storage)
        assert [each.suffix for each in (tmp_path / "cache" / "shared").iterdir()] == [".lock"]
    path.write_bytes(data)
    assert len(read_manifest(uri, storage).rows) == 24


def test_a_node_without_room_holds_the_rows(large: tuple[str, Storage], caplog: pytest.LogCaptureFixture) -> None:
    uri, _ = large
    nowhere = Storage(cache=ShardCache(folder="/proc/nowhere", max_gb=1))
    assert len(read_manifest(uri, nowhere).rows) == 24
    assert "is shared on this node" in caplog.text


def test_rows_in_pieces_make_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = dict.fromkeys(MANIFEST.names, 0) | {"slide": "a", "case": "x"}
    one |= {"split": "train", "shard": "s", "label": None, "has_mask": False}
    table = table_of([(one, 50)])
    monkeypatch.setattr(manifest_file, "_GROUP_ROWS", 16)
    how = {"tile_px": 8, "mpp": 0.5, "ingest": "i", "storage": Storage()}
    whole = write_manifest(str(tmp_path / "a"), table, **how)  # type: ignore[arg-type]
    parts = (table.slice(at, 7) for at in range(0, 50, 7))
    pieces = manifest_file.write_rows(str(tmp_path / "b"), parts, **how)  # type: ignore[arg-type]
    assert pieces.header == whole.header
    assert (tmp_path / "a" / TABLE_NAME).read_bytes() == (tmp_path / "b" / TABLE_NAME).read_bytes()
    assert read_table(pieces).equals(table)


def test_copying_rows_holds_no_column_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, groups = 80_000, 16
    hashes = np.random.default_rng(0).bytes(16 * rows).hex()
    constant = dict.fromkeys(MANIFEST.names, 0) | dict.fromkeys(
        ("tile_id", "slide", "case", "label", "split", "shard"), "a"
    )
    columns = {name: pa.repeat(value, rows) for name, value in constant.items()}
    columns |= {"content": pa.array([hashes[at : at + 32] for at in range(0, len(hashes), 32)])}
    columns |= {"has_mask": pa.repeat(False, rows)}
    table = pa.table(columns).select(MANIFEST.names).cast(MANIFEST)
    path = tmp_path / TABLE_NAME
    pq.write_table(table, path, row_group_size=rows // groups, compression="none", use_dictionary=False)
    column = pq.read_metadata(path).row_group(0).column(MANIFEST.names.index("content")).total_compressed_size * groups
    monkeypatch.setattr(tile_rows, "_PIECE", rows // groups)
    monkeypatch.setattr(tile_rows, "_AT_ONCE", 1)
    held: list[int] = []
    packed = tile_rows.hex_to_bytes

    def watched(*arguments: Any, **how: Any) -> pa.Array:
        held.append(pa.total_allocated_bytes())
        return packed(*arguments, **how)

    monkeypatch.setattr(tile_rows, "hex_to_bytes", watched)
    before = pa.total_allocated_bytes()
    copy_rows(path, tmp_path)
    assert len(held) == groups
    assert max(held) - before < column / 2
