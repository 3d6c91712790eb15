"""Reading row groups: each once, and a clear refusal of shards that are missing, cut short or not the manifest's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from histill.config.common import Storage
from histill.errors import InputError
from histill.stream.read import GroupRead, Source, read_groups, reads_for
from histill.stream.responses import RESPONSE
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.unit


@pytest.fixture
def manifest(tmp_path: Path, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path / "tiles", tiles=16, tile_px=32)


def read_all(manifest: Manifest, **source: object) -> list[pa.Table]:
    wanted = np.arange(manifest.header.tiles)[None]
    where = Source(manifest.uri, Storage(), **source)  # type: ignore[arg-type]
    return list(read_groups(where, reads_for(manifest, wanted)))


def respond(manifest: Manifest, folder: Path, tile_ids: list[str] | None = None) -> str:
    """Responses `r<row>` beside the manifest's tiles, in shards like theirs."""
    ids = tile_ids or manifest.table["tile_id"].to_pylist()
    answers = pa.table({"tile_id": ids, "response": [b"r%d" % row for row in range(len(ids))]}, schema=RESPONSE)
    for shard in manifest.table["shard"].unique().to_pylist():
        of_shard = np.flatnonzero(manifest.table["shard"].to_numpy(zero_copy_only=False) == shard)
        (folder / shard).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(answers.take(pa.array(of_shard)), folder / shard, row_group_size=4)
    return str(folder)


def test_each_row_group_is_read_once_in_the_order_of_need(manifest: Manifest) -> None:
    random = np.random.default_rng(0)
    wanted = random.permutation(16)[:12].reshape(3, 4)
    wanted[-1, -1] = -1
    reads = reads_for(manifest, wanted)
    places = [(read.shard, read.row_group) for read in reads]
    assert len(set(places)) == len(places)
    assert sorted(tile for read in reads for tile in read.tiles) == sorted(wanted[wanted >= 0])
    first_need = [min(np.flatnonzero(wanted.ravel() == tile)[0] for tile in read.tiles) for read in reads]
    assert first_need == sorted(first_need)
    rows = manifest.table.to_pylist()
    for read in reads:
        assert [rows[tile]["row"] for tile in read.tiles] == list(read.rows)
        assert all(
            (rows[tile]["shard"], rows[tile]["row_group"]) == (read.shard, read.row_group) for tile in read.tiles
        )


def test_tables_bring_the_rows_asked_for(manifest: Manifest) -> None:
    whole = pa.concat_tables(read_all(manifest, masks=True)).sort_by("tile")
    assert set(whole.column_names) == {"tile", "image", "mask"}
    assert whole["tile"].to_pylist() == list(range(16))
    wanted = np.array([[9, 2, 11]])
    some = pa.concat_tables(read_groups(Source(manifest.uri, Storage()), reads_for(manifest, wanted)))
    assert set(some.column_names) == {"tile", "image"}
    for row in some.to_pylist():
        assert row["image"] == whole["image"][row["tile"]].as_py()


def test_responses_are_joined_row_by_row(manifest: Manifest, tmp_path: Path) -> None:
    tables = read_all(manifest, responses=respond(manifest, tmp_path / "responses"))
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["response"] for row in rows] == [b"r%d" % row["tile"] for row in rows]


def test_responses_to_other_tiles_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    ids = manifest.table["tile_id"].to_pylist()
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
    "read", [GroupRead("shards/0000.parquet", 9, (0,), (0,)), GroupRead("shards/0000.parquet", 1, (2, 7), (6, 11))]
)
def test_a_shard_with_less_than_the_manifest_says_is_named(manifest: Manifest, read: GroupRead) -> None:
    with pytest.raises(InputError, match=r"/shards/0000\.parquet"):
        list(read_groups(Source(manifest.uri, Storage()), [read]))


def test_a_shard_without_the_columns_is_named(manifest: Manifest) -> None:
    shard = Path(manifest.uri, "shards/0000.parquet")
    pq.write_table(pq.read_table(shard).drop_columns(["mask"]), shard, row_group_size=4)
    with pytest.raises(InputError, match=r"shard .*/shards/0000\.parquet .*column 'mask'"):
        read_all(manifest, masks=True)
