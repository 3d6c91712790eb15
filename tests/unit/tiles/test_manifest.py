"""The manifest: its digest, and what reading refuses."""

import hashlib
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histill.config.common import Storage
from histill.errors import InputError
from histill.tiles.manifest import HEADER_NAME, Manifest
from histill.tiles.manifest_file import TABLE_NAME, digest_tables, read_manifest, write_manifest
from histill.tiles.schema import MANIFEST
from histill.tiles.shards import Tile, content_hash, write_shard
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

STORAGE = Storage()


def table(count: int = 20) -> pa.Table:
    rows = [
        {
            "tile_id": f'slide, "{number}"',
            "slide": "slide",
            "case": f"case {number % 3}",
            "x": number,
            "y": 0,
            "mpp": 0.499 + number / 7,
            "size_px": 256,
            "label": None if number % 2 else "",
            "has_mask": number % 4 == 0,
            "split": ("train", "train", "test")[number % 3],
            "shard": "shards/a.parquet",
            "row_group": number // 8,
            "row": number % 8,
            "content": content_hash(b"image %d" % number, None),
        }
        for number in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=MANIFEST)


def written(folder: Path, rows: pa.Table | None = None) -> Manifest:
    return write_manifest(
        str(folder),
        table() if rows is None else rows,
        tile_px=256,
        mpp=0.5,
        ingest="i",
        storage=STORAGE,
        skipped=("a.svs is damaged.",),
    )


def test_round_trip(tmp_path: Path) -> None:
    manifest = written(tmp_path)
    again = read_manifest(str(tmp_path), STORAGE)
    assert again.header == manifest.header
    assert read_table(again).equals(read_table(manifest))
    assert manifest.header.splits == {"test": 6, "train": 14}
    assert manifest.header.masks == 5
    assert manifest.header.skipped == ("a.svs is damaged.",)
    assert manifest.rows_of("test").tolist() == [2, 5, 8, 11, 14, 17]
    assert manifest.counts_of("test") == (6, 1, 1)
    assert manifest.counts_of("val") == (0, 0, 0)
    with pytest.raises(InputError, match=r"split 'val' of .* is empty \(it has test 6, train 14\)"):
        manifest.rows_of("val")


@given(st.lists(st.integers(1, 19), max_size=6, unique=True))
def test_digest_does_not_depend_on_chunks(cuts: list[int]) -> None:
    whole = table()
    edges = [0, *sorted(cuts), 20]
    parts = [whole.slice(start, end - start) for start, end in pairwise(edges)]
    assert digest_tables([pa.concat_tables(parts)]) == digest_tables(parts) == digest_tables([whole])


def test_digest_sees_every_change(tmp_path: Path) -> None:
    digest = digest_tables([table()])
    rows = table().to_pylist()
    changes = {"content": content_hash(b"image 3", b""), "label": "x", "split": "val", "mpp": 0.5, "case": "other"}
    changes["content"] = content_hash(b"image 4", None)
    for column, value in changes.items():
        changed = [dict(row) for row in rows]
        changed[3][column] = value
        assert digest_tables([pa.Table.from_pylist(changed, schema=MANIFEST)]) != digest, column
    assert digest_tables([table().take([1, 0, *range(2, 20)])]) != digest


def test_content_hash() -> None:
    assert content_hash(b"ab", None) == content_hash(b"ab", b"")
    assert len({content_hash(b"ab", None), content_hash(b"ac", None), content_hash(b"ab", b"c")}) == 3
    assert len(content_hash(b"", None)) == 32


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / TABLE_NAME).unlink()
    with pytest.raises(InputError, match=r"manifest\.parquet is missing; ingest the tiles again"):
        read_manifest(str(tmp_path), STORAGE)


@pytest.mark.parametrize("cut", [lambda data: b"", lambda data: data[:-20], lambda data: data[:-20] + bytes(20)])
def test_a_table_that_was_cut_short_or_overwritten_is_refused(tmp_path: Path, cut: Callable[[bytes], bytes]) -> None:
    written(tmp_path)
    path = tmp_path / TABLE_NAME
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(InputError, match=r"manifest\.parquet does not match its header's digest") as caught:
        read_manifest(str(tmp_path), STORAGE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [19, 20], ids=["other rows", "the same rows, written otherwise"])
def test_a_table_of_another_set_is_refused(tmp_path: Path, rows: int) -> None:
    written(tmp_path)
    pq.write_table(table(rows), tmp_path / TABLE_NAME)
    with pytest.raises(InputError, match="does not match its header's digest"):
        read_manifest(str(tmp_path), STORAGE)


def test_the_header_names_the_rows_and_the_bytes_of_their_file(tmp_path: Path) -> None:
    header = written(tmp_path).header
    assert header.table == hashlib.sha256((tmp_path / TABLE_NAME).read_bytes()).hexdigest()
    assert header.digest == digest_tables([table()])
    assert len({header.table, header.digest}) == 2


def test_headers_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no tile set .* make one with histill ingest\.$"):
        read_manifest(str(tmp_path), STORAGE)
    (tmp_path / "index.csv").write_text("image,case\n")
    with pytest.raises(InputError, match=r"output=<folder> images.index=\S+/index.csv images.mpp=<um/px>"):
        read_manifest(str(tmp_path), STORAGE)
    written(tmp_path)
    path = tmp_path / HEADER_NAME
    header = json.loads(path.read_text())
    without = [{key: header[key] for key in header if key != left_out} for left_out in ("digest", "table")]
    for bad in ({**header, "surplus": 1}, *without, []):
        path.write_text(json.dumps(bad))
        with pytest.raises(InputError, match="not a manifest of this version"):
            read_manifest(str(tmp_path), STORAGE)


def test_shards_have_their_row_groups_and_leave_no_other_file(tmp_path: Path) -> None:
    tiles = [Tile(str(n), "s", "c", 0, 0, 0.5, None, b"image %d" % n, b"m" if n % 2 else None) for n in range(10)]
    path = tmp_path / "shards" / "a.parquet"
    write_shard(str(path), tiles, 4, STORAGE)
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(group).num_rows for group in range(3)] == [4, 4, 2]
    assert file.read_row_group(2)["image"].to_pylist() == [b"image 8", b"image 9"]
    assert file.read()["mask"].to_pylist() == [None, b"m"] * 5
    assert [entry.name for entry in path.parent.iterdir()] == ["a.parquet"]
