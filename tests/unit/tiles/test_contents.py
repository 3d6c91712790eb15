"""Tiles are those that the manifest names: others are refused, and damaged ones are neither used nor cached."""

import io
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from histill.config.cache_responses import CacheConfig
from histill.config.common import ShardCache, Storage
from histill.config.load import validate
from histill.errors import InputError
from histill.storage.control import create_bytes, list_files, measure_files, swap_bytes, write_bytes
from histill.storage.tables import write_table
from histill.stream.cached_views import CachedViews
from histill.stream.index import SampleIndex
from histill.stream.ray_data.chunks import Chunk
from histill.stream.read import DecodedCacheSpec, ReadRequest, ShardReader, TileSource
from histill.stream.responses import response_schema
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.teachers.classical import ClassicalTeacher
from histill.teachers.shard_responses import ResponseJob, write_shard_responses
from histill.tiles.contents import Expected, content_hash
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import read_manifest
from histill.tiles.shards import shards_of
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

ONE, TWO = "shards/0000.parquet", "shards/0001.parquet"
TILES = 16  # in two shards of two row groups of four


@pytest.fixture
def manifest(tmp_path: Path, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path / "tiles", tiles=TILES, tile_px=32)


def stream(manifest: Manifest, storage: Storage = Storage(), **changes: Any) -> TileStream:  # noqa: B008
    source = {key: changes.pop(key) for key in ("masks", "responses", "kept") if key in changes}
    values: dict[str, Any] = {
        "source": TileSource(manifest.uri, manifest.header.digest, storage, **source),
        "split": "",
        "only": np.arange(TILES),
        "views": Views(32),
        "batch_size": 4,
        "worker": 0,
        "workers": 1,
    }
    return TileStream(manifest, **(values | changes))


def lost(manifest: Manifest, storage: Storage = Storage(), **changes: Any) -> list[int]:  # noqa: B008
    """The tiles that an exact pass masks out."""
    batches = list(stream(manifest, storage, **changes).exact_pass())
    return [tile for batch in batches for tile in batch.index[~batch.valid].tolist() if tile >= 0]


def change(manifest: Manifest, shard: str, row: int, column: str, value: Callable[[bytes], bytes]) -> bytes:
    """Change one tile in a shard, which stays a valid file; return the original file."""
    path = Path(manifest.uri, shard)
    before = path.read_bytes()
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[row][column] = value(rows[row][column])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path, row_group_size=4)
    return before


def swap(one: Path, two: Path) -> None:
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def another(image: bytes) -> bytes:
    """An image that can be decoded but is of no tile of the set."""
    side = simplejpeg.decode_jpeg_header(image)[0] if image[:2] == b"\xff\xd8" else 32
    return simplejpeg.encode_jpeg(np.full((side, side, 3), 77, np.uint8), quality=90)


def test_the_hash_of_a_tile_is_that_of_its_image_and_then_of_its_mask() -> None:
    empty = "99aa06d3014798d86001c324468d497f"  # XXH3-128 of nothing, from the reference implementation's tests
    assert content_hash(b"", None) == empty
    assert content_hash(b"a", b"b") == content_hash(b"a", None) + content_hash(b"b", None)


@pytest.mark.parametrize("masks", [False, True])
def test_swapped_shards_are_refused(manifest: Manifest, masks: bool) -> None:
    assert lost(manifest, masks=masks) == []
    swap(Path(manifest.uri, ONE), Path(manifest.uri, TWO))
    with pytest.raises(InputError, match=r"row group 0 of shard .*/0000\.parquet holds tile 'case-.*/8' where .*/0'"):
        lost(manifest, masks=masks, max_corrupt=TILES)


def test_swapped_row_groups_are_refused(manifest: Manifest) -> None:
    path = Path(manifest.uri, TWO)
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(4), table.slice(0, 4)]), path, row_group_size=4)
    with pytest.raises(InputError, match=r"row group 0 of shard .*/0001\.parquet holds tile"):
        lost(manifest, max_corrupt=TILES)


@pytest.mark.parametrize("cut", [3, 5])
def test_row_groups_of_another_length_are_refused(manifest: Manifest, cut: int) -> None:
    path = Path(manifest.uri, TWO)
    pq.write_table(pq.read_table(path), path, row_group_size=cut)
    with pytest.raises(InputError, match=rf"row group 0 of shard .*/0001\.parquet has {cut} tiles and .* says 4"):
        lost(manifest, max_corrupt=TILES)


@pytest.mark.parametrize(("column", "masks"), [("image", False), ("image", True), ("mask", True)])
def test_a_tile_of_another_content_counts_as_undecodable(manifest: Manifest, column: str, masks: bool) -> None:
    mask = Path(manifest.uri, TWO)
    other = pq.read_table(mask)["mask"][5].as_py()
    change(manifest, ONE, 6, column, another if column == "image" else lambda _: other)
    with pytest.raises(InputError, match=r"tile case-.*/6 in shard .*0000\.parquet cannot be used \(its bytes are not"):
        lost(manifest, masks=masks)
    assert lost(manifest, masks=masks, max_corrupt=1) == [6]


def test_another_mask_is_no_matter_to_who_reads_none(manifest: Manifest) -> None:
    other = pq.read_table(Path(manifest.uri, TWO))["mask"][5].as_py()
    change(manifest, ONE, 6, "mask", lambda _: other)
    assert lost(manifest, masks=False) == []


@pytest.mark.parametrize("kept", [None, DecodedCacheSpec(32, 32)])
def test_the_nodes_cache_keeps_no_damage(manifest: Manifest, tmp_path: Path, kept: DecodedCacheSpec | None) -> None:
    storage = Storage(cache=ShardCache(folder=str(tmp_path / "cache"), max_gb=1.0))
    before = change(manifest, ONE, 1, "image", another)
    assert lost(manifest, storage, max_corrupt=1, kept=kept) == [1]
    Path(manifest.uri, ONE).write_bytes(before)
    assert lost(manifest, storage, kept=kept) == []
    for shard in (ONE, TWO):
        Path(manifest.uri, shard).unlink()
    assert lost(manifest, storage, kept=kept) == []  # from the cache alone


@pytest.mark.parametrize("threads", [1, 4])  # with one, the sound row group read last leaves the footer behind
def test_a_shard_that_is_mended_under_a_reader_is_read_anew(manifest: Manifest, threads: int) -> None:
    tiles = stream(manifest, max_corrupt=TILES, batch_size=TILES, read=ShardReader(threads))
    before = change(manifest, ONE, 1, "image", another)
    assert [int(batch.valid.sum()) for batch in tiles.exact_pass()] == [TILES - 1]
    Path(manifest.uri, ONE).write_bytes(before)  # a footer other than the cached one
    assert [int(batch.valid.sum()) for batch in tiles.exact_pass()] == [TILES]


def test_a_part_of_a_split_is_checked_too(manifest: Manifest) -> None:
    some = np.array([2, 9, 10])
    assert lost(manifest, only=some) == []
    (first, second) = SampleIndex.at(manifest, some).reads(np.arange(3))
    assert first.expected is not None
    assert second.expected is not None
    assert first.expected.lists()[1] == read_table(manifest)["content"].to_pylist()[0:4]
    assert second.expected.lists()[1] == read_table(manifest)["content"].to_pylist()[8:12]
    change(manifest, TWO, 1, "image", another)
    assert lost(manifest, only=some, max_corrupt=1) == [9]


def test_ray_tasks_are_told_what_to_expect() -> None:
    sent = ReadRequest("a", 3, np.array([0, 2]), np.array([7, 8]), Expected(pa.array(["x", "y"]), pa.array(["1", "2"])))
    unchecked = ReadRequest("b", 0, np.array([0]), np.array([9]))
    chunk = Chunk.from_block(
        Chunk("training", 4, True, [sent, unchecked], np.array([5, 6, 7]), np.array([0, 0, 1])).to_block()
    )
    assert (chunk.stream, chunk.epoch, chunk.last) == ("training", 4, True)
    assert (chunk.tiles.tolist(), chunk.copies.tolist()) == ([5, 6, 7], [0, 0, 1])
    got, other = chunk.requests
    assert (got.shard, got.row_group, got.rows.tolist(), got.entries.tolist()) == ("a", 3, [0, 2], [7, 8])
    assert got.expected is not None
    assert got.expected.lists() == (["x", "y"], ["1", "2"])
    assert (other.shard, other.entries.tolist(), other.expected) == ("b", [9], None)


def answer(manifest: Manifest, folder: Path) -> CachedViews:
    data = {"tiles": manifest.uri, "teacher": {"classical": True}, "output": "unused"}
    teacher = ClassicalTeacher(0.5)
    job = ResponseJob(validate(CacheConfig, data, "the test"), CachedViews(str(folder), teacher.outputs))
    for shard in shards_of(manifest):
        write_shard_responses(teacher, manifest, shard, job)
    return job.cached


def test_no_teacher_answers_tiles_that_are_others(manifest: Manifest, tmp_path: Path) -> None:
    swap(Path(manifest.uri, ONE), Path(manifest.uri, TWO))
    with pytest.raises(InputError, match=r"row group 0 of shard .*/0000\.parquet holds tile"):
        answer(manifest, tmp_path / "answers")
    assert not list(tmp_path.rglob("answers/**/*.parquet"))


def test_a_tile_that_was_damaged_is_answered_once_it_is_mended(manifest: Manifest, tmp_path: Path) -> None:
    storage = Storage(cache=ShardCache(folder=str(tmp_path / "cache"), max_gb=1.0))
    before = change(manifest, ONE, 1, "image", another)
    cached = answer(manifest, tmp_path / "answers")
    assert pq.read_table(tmp_path / "answers" / ONE)["response"].to_pylist().index(b"") == 1
    Path(manifest.uri, ONE).write_bytes(before)
    assert lost(manifest, storage, responses=cached, max_corrupt=1) == [1]
    answer(manifest, tmp_path / "answers")
    assert lost(manifest, storage, responses=cached) == []


def test_responses_of_another_cache_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    cached, _ = (answer(manifest, tmp_path / name) for name in ("mine", "yours"))
    assert lost(manifest, responses=cached) == []
    swap(tmp_path / "mine" / ONE, tmp_path / "yours" / ONE)
    with pytest.raises(InputError, match=r"responses .*/mine/.*0000\.parquet do not belong to the cache mine"):
        lost(manifest, responses=cached)
    (tmp_path / "mine" / ONE).unlink()
    answer(manifest, tmp_path / "mine")
    assert lost(manifest, responses=cached) == []


def test_swapped_responses_are_refused_and_answered_again(manifest: Manifest, tmp_path: Path) -> None:
    cached = answer(manifest, tmp_path / "answers")
    swap(tmp_path / "answers" / ONE, tmp_path / "answers" / TWO)
    with pytest.raises(InputError, match=r"responses .*0000\.parquet belong to other tiles"):
        lost(manifest, responses=cached)
    answer(manifest, tmp_path / "answers")
    assert lost(manifest, responses=cached) == []


def test_damaged_responses_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    schema = response_schema(1)
    ids = read_table(manifest)["tile_id"].to_pylist()
    for number, shard in enumerate((ONE, TWO)):
        rows = pa.table([ids[8 * number :][:8], [bytes([number]) * 500] * 8], schema=schema)
        uri = str(tmp_path / "answers" / shard)
        write_table(uri, [rows.slice(0, 4), rows.slice(4)], schema, Storage(), belongs_to="answers")
    cached = CachedViews(str(tmp_path / "answers"), ClassicalTeacher(0.5).outputs)
    reads = SampleIndex.at(manifest, np.arange(TILES)).reads(np.arange(TILES))
    source = TileSource(manifest.uri, manifest.header.digest, Storage(), responses=cached)
    assert len(list(ShardReader()(source, reads))) == 4
    path = tmp_path / "answers" / TWO
    data = bytearray(path.read_bytes())
    at = data.index(b"\x01" * 500) + 100
    data[at] ^= 4
    path.write_bytes(data)
    assert pq.read_table(io.BytesIO(data)).num_rows == 8  # as far as Parquet knows
    with pytest.raises(InputError, match=r"0001\.parquet cannot be read .*so delete it and cache the responses again"):
        list(ShardReader()(source, reads))


def test_more_shards_than_a_process_may_open_files(tmp_path: Path, tile_set: Callable[..., Manifest]) -> None:
    manifest = tile_set(tmp_path / "tiles", tiles=8 * 80, tile_px=16, masks=False)
    tiles = stream(manifest, only=np.arange(8 * 80), views=Views(16))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 40, hard))
    try:
        for _ in range(2):
            assert sum(int(batch.valid.sum()) for batch in tiles.exact_pass()) == 8 * 80
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "name", ["a+b c", "100%25 50%", "Präparat 患者 é", "what?#1", "[x]{y}*~!", "q&a=b;c'$,@", "a:b"]
)
def test_a_folder_may_have_any_name(tmp_path: Path, tile_set: Callable[..., Manifest], name: str) -> None:
    root = f"{tmp_path}/{name}"
    manifest = tile_set(f"{root}/tiles", tiles=TILES, tile_px=32)
    assert read_table(read_manifest(manifest.uri, Storage())).equals(read_table(manifest))
    assert lost(manifest, responses=answer(manifest, Path(root, "answers"))) == []
    assert measure_files(manifest.uri, [ONE, TWO, "shards/none"], Storage()).keys() == {ONE, TWO}
    assert create_bytes(f"{root}/claim {name}", b"1", Storage())
    assert not create_bytes(f"{root}/claim {name}", b"2", Storage())
    assert swap_bytes(f"{root}/claim {name}", b"1", b"2", Storage())
    assert list_files(root, Storage()) == [f"{root}/claim {name}"]
    Path(root, f"claim {name}.00000000.part").touch()  # left by a killed writer
    write_bytes(f"{root}/claim {name}", b"3", Storage())
    assert list_files(root, Storage()) == [f"{root}/claim {name}"]
