"""Reading row groups: each once, and a clear error for shards that are missing, truncated or not the manifest's."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from histill.config.common import ShardCache, Storage
from histill.counts import take_counts
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.storage.tables import write_table
from histill.stream.cached_views import CachedViews
from histill.stream.index import SampleIndex
from histill.stream.read import ReadRequest, ShardReader, TileSource
from histill.stream.responses import response_columns, response_schema
from histill.tiles.manifest import Manifest
from histill.tiles.shards import content_hash
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

SHARDS = ("shards/0000.parquet", "shards/0001.parquet")


@pytest.fixture
def manifest(tmp_path: Path, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path / "tiles", tiles=16, tile_px=32)


def all_reads(manifest: Manifest) -> list[ReadRequest]:
    return [replace(read, expected=None) for read in SampleIndex.at(manifest, np.arange(16)).reads(np.arange(16))]


def source_of(manifest: Manifest, **changes: object) -> TileSource:
    return TileSource(manifest.uri, manifest.header.digest, Storage(), **changes)  # type: ignore[arg-type]


def read_all(manifest: Manifest, **source: object) -> list[pa.Table]:
    return list(ShardReader()(source_of(manifest, **source), all_reads(manifest)))


def respond(manifest: Manifest, folder: Path, tile_ids: list[str] | None = None, views: int = 1) -> CachedViews:
    """Responses `r<row>.<view>` beside the manifest's tiles, in shards like theirs."""
    ids = tile_ids or read_table(manifest)["tile_id"].to_pylist()
    columns = {
        name: [b"r%d.%d" % (row, view) for row in range(len(ids))] for view, name in enumerate(response_columns(views))
    }
    answers = pa.table({"tile_id": ids, **columns}, schema=response_schema(views))
    for shard in read_table(manifest)["shard"].unique().to_pylist():
        of_shard = np.flatnonzero(read_table(manifest)["shard"].to_numpy(zero_copy_only=False) == shard)
        (folder / shard).parent.mkdir(parents=True, exist_ok=True)
        rows = answers.take(pa.array(of_shard))
        groups = [rows.slice(start, 4) for start in range(0, len(rows), 4)]
        write_table(str(folder / shard), groups, rows.schema, Storage(), belongs_to=folder.name)
    return CachedViews(str(folder), OutputSpec("segmentation", ("background", "nucleus")), views)


@pytest.mark.parametrize("threads", [1, 4])
def test_tables_come_in_the_order_asked_for(manifest: Manifest, threads: int) -> None:
    before = set(threading.enumerate())
    reads = [all_reads(manifest)[number] for number in (2, 0, 3, 1)] * 10
    tables = list(ShardReader(threads)(source_of(manifest), reads))
    assert [table["entry"].to_pylist() for table in tables] == [read.entries.tolist() for read in reads]
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_tables_bring_the_rows_asked_for(manifest: Manifest) -> None:
    whole = pa.concat_tables(read_all(manifest, masks=True))
    assert set(whole.column_names) == {"entry", "image", "mask"}
    assert whole["entry"].to_pylist() == list(range(16))
    contents = [content_hash(row["image"], row["mask"]) for row in whole.to_pylist()]
    assert contents == read_table(manifest)["content"].to_pylist()
    wanted = ReadRequest("shards/0001.parquet", 0, np.array([1, 3, 1]), np.array([70, 71, 72]))
    (some,) = ShardReader()(source_of(manifest), [wanted])
    assert set(some.column_names) == {"entry", "image"}
    assert some["entry"].to_pylist() == [70, 71, 72]
    assert some["image"].to_pylist() == [whole["image"][row].as_py() for row in (9, 11, 9)]


def test_no_more_is_read_ahead_than_the_threads_are_worth(manifest: Manifest) -> None:
    asked: list[int] = []

    def reads() -> Iterator[ReadRequest]:
        for number in range(1000):
            asked.append(number)
            yield all_reads(manifest)[number % 4]

    running = ShardReader(2)(source_of(manifest), reads())
    for _ in range(10):
        next(running)
    assert len(asked) <= 10 + 2 * 2 + 1
    running.close()  # type: ignore[attr-defined]


def test_a_shard_is_opened_once_for_all_its_row_groups(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    footers = []
    read_metadata = pq.read_metadata
    monkeypatch.setattr(pq, "read_metadata", lambda *given: footers.append(given) or read_metadata(*given))
    reader = ShardReader(1)
    for _ in range(3):  # epochs
        assert len(list(reader(source_of(manifest), all_reads(manifest)))) == 4
    assert len(footers) == 2


def test_a_cache_answers_when_the_shards_are_gone(manifest: Manifest, tmp_path: Path) -> None:
    storage = Storage(cache=ShardCache(folder=str(tmp_path / "cache"), max_gb=1))
    source = TileSource(manifest.uri, manifest.header.digest, storage, masks=True)
    take_counts()
    first = list(ShardReader()(source, all_reads(manifest)))
    assert take_counts() == {"cache_misses": len(first)}
    for shard in SHARDS:
        Path(manifest.uri, shard).unlink()
    again = list(ShardReader()(source, all_reads(manifest)))
    assert take_counts() == {"cache_hits": len(first)}
    assert [table.to_pylist() for table in again] == [table.to_pylist() for table in first]
    other = TileSource(manifest.uri, "another set", storage, masks=True)
    with pytest.raises(InputError, match="is missing though the manifest names it"):
        list(ShardReader()(other, all_reads(manifest)))


def test_responses_are_joined_row_by_row(manifest: Manifest, tmp_path: Path) -> None:
    tables = read_all(manifest, responses=respond(manifest, tmp_path / "responses"))
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["response"] for row in rows] == [b"r%d.0" % row["entry"] for row in rows]


def test_of_several_views_one_is_read(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached, asked = respond(manifest, tmp_path / "responses", views=3), set()
    read_row_group = pq.ParquetFile.read_row_group

    def noted(file: pq.ParquetFile, number: int, columns: list[str], **rest: object) -> pa.Table:
        asked.update(columns)
        return read_row_group(file, number, columns=columns, **rest)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    for view in (0, 2):
        asked.clear()
        rows = pa.concat_tables(read_all(manifest, responses=cached, view=view)).to_pylist()
        assert [row["response"] for row in rows] == [b"r%d.%d" % (row["entry"], view) for row in rows]
        assert asked == {"tile_id", "image", f"response_{view}"}


def test_a_cache_on_the_node_keeps_views_apart(manifest: Manifest, tmp_path: Path) -> None:
    storage = Storage(cache=ShardCache(folder=str(tmp_path / "cache"), max_gb=1))
    cached, reader = respond(manifest, tmp_path / "responses", views=2), ShardReader()
    for view in (0, 1, 0):
        source = TileSource(manifest.uri, manifest.header.digest, storage, responses=cached, view=view)
        rows = pa.concat_tables(list(reader(source, all_reads(manifest)))).to_pylist()
        assert [row["response"] for row in rows] == [b"r%d.%d" % (row["entry"], view) for row in rows]


def test_responses_to_other_tiles_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    ids = read_table(manifest)["tile_id"].to_pylist()
    folder = respond(manifest, tmp_path / "responses", [*ids[:-2], ids[-1], ids[-2]])
    with pytest.raises(InputError, match=r"responses .*/shards/0001\.parquet belong to other tiles"):
        read_all(manifest, responses=folder)


def test_a_missing_shard_is_named(manifest: Manifest) -> None:
    Path(manifest.uri, "shards/0001.parquet").unlink()
    with pytest.raises(InputError, match=r"shard .*/shards/0001\.parquet is missing though the manifest names it"):
        read_all(manifest)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_shard_is_named(manifest: Manifest, kept: float) -> None:
    shard = Path(manifest.uri, "shards/0001.parquet")
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match=r"shard .*/shards/0001\.parquet cannot be read .*truncated") as caught:
        read_all(manifest)
    assert "\n" not in str(caught.value)


def test_a_shard_with_a_hole_is_named(manifest: Manifest) -> None:
    shard = Path(manifest.uri, "shards/0001.parquet")
    data = bytearray(shard.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    shard.write_bytes(data)
    with pytest.raises(InputError, match=r"/shards/0001\.parquet") as caught:
        read_all(manifest)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "read",
    [
        ReadRequest("shards/0000.parquet", 9, np.array([0]), np.array([0])),
        ReadRequest("shards/0000.parquet", 1, np.array([2, 7]), np.array([6, 11])),
    ],
    ids=["row group", "row"],
)
def test_a_shard_with_less_than_the_manifest_says_is_named(manifest: Manifest, read: ReadRequest) -> None:
    with pytest.raises(InputError, match=r"/shards/0000\.parquet"):
        list(ShardReader()(source_of(manifest), [read]))


def test_a_shard_without_the_columns_is_named(manifest: Manifest) -> None:
    shard = Path(manifest.uri, "shards/0000.parquet")
    pq.write_table(pq.read_table(shard).drop_columns(["mask"]), shard, row_group_size=4)
    with pytest.raises(InputError, match=r"shard .*/shards/0000\.parquet .*column 'mask'"):
        read_all(manifest, masks=True)
