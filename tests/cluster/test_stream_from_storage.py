"""The stream against a real S3 server: what is read once, and what is read again."""

from collections.abc import Callable
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from histill.cluster.sharded import ShardedFolder
from histill.config.common import ShardCache, Storage
from histill.errors import InputError
from histill.local.s3 import S3Server
from histill.outputs import OutputSpec
from histill.storage.control import measure_files, remove
from histill.storage.filesystems import arrow_filesystem, control_filesystem
from histill.storage.row_group_index import INDEX_NAME, write_index
from histill.storage.tables import write_table
from histill.storage.uris import join
from histill.stream import ranged
from histill.stream.cached_views import CachedViews
from histill.stream.read import ShardReader, TileSource
from histill.stream.responses import encode_logits, response_schema
from histill.stream.tile_batch import TileBatch
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tiles.manifest import HEADER_NAME, Manifest
from histill.tiles.whole_table import read_table
from testbed.fault_proxy import KINDS, Faults, fault_proxy
from testbed.streams import MODES, Mode, read_in, small_tasks

pytestmark = pytest.mark.cluster

TILES, SHARDS, GROUPS = 24, 2, 4  # of split train: 16 tiles in two shards of two row groups each


@pytest.fixture
def manifest(s3: S3Server, tile_set: Callable[..., Manifest], tmp_path: Path) -> Manifest:
    with patch.dict("os.environ", s3.environment()):
        return tile_set(f"s3://{s3.bucket}/stream/{tmp_path.name}", tiles=TILES, tile_px=32)


def stream(manifest: Manifest, storage: Storage, **source: object) -> TileStream:
    return TileStream(
        manifest=manifest,
        source=TileSource(manifest.uri, manifest.header.digest, storage, masks=True, **source),  # type: ignore[arg-type]
        split="train",
        views=Views(32),
        batch_size=4,
        worker=0,
        workers=1,
    )


def epoch(tiles: TileStream, number: int) -> list[TileBatch]:
    batches = list(tiles.training_epoch(number, seed=0))
    assert sum(int(batch.valid.sum()) for batch in batches) == 16
    return batches


def respond(manifest: Manifest, uri: str) -> CachedViews:
    """Responses in shards like the manifest's, with their index."""
    table, storage, name = read_table(manifest), Storage(), uri.rpartition("/")[2]
    for shard in manifest.shards():
        ids = table.filter(pc.equal(table["shard"], shard))["tile_id"].combine_chunks()
        answers = [encode_logits(np.ones((1, 32, 32)))] * len(ids)
        rows = pa.table({"tile_id": ids, "response": answers}, schema=response_schema(1))
        groups = [rows.slice(start, 4) for start in range(0, len(rows), 4)]
        write_table(f"{uri}/{shard}", groups, rows.schema, storage, belongs_to=name)
    write_index(uri, measure_files(uri, manifest.shards(), storage), name, storage)
    return CachedViews(uri, OutputSpec("segmentation", ("background", "nucleus")))


def count_requests(manifest: Manifest, s3: S3Server, **source: object) -> tuple[int, int, list[TileBatch]]:
    """The requests of a first and of a second epoch of a new reader, and the first's batches."""
    with fault_proxy(s3.endpoint, Faults(rate=0)) as proxy:
        tiles = stream(manifest, Storage(endpoint=proxy.endpoint), **source)
        batches = epoch(tiles, 0)
        first = proxy.counts["requests"]
        epoch(tiles, 1)
        return first, proxy.counts["requests"] - first, batches


def test_a_row_group_is_one_request_and_one_more_with_responses(
    manifest: Manifest, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranged, "_MOST", 0)  # neighbors are not read together
    with patch.dict("os.environ", s3.environment()):
        first, second, tiles = count_requests(manifest, s3)
        assert (first, second) == (GROUPS + 1, GROUPS)  # and the index; no shard is opened
        cached = respond(manifest, f"{manifest.uri}-responses")
        first, second, answered = count_requests(manifest, s3, responses=cached)
        assert (first, second) == (2 * (GROUPS + 1), 2 * GROUPS)
        # without an index the footers say the same
        for uri in (manifest.uri, cached.uri):
            remove(join(uri, INDEX_NAME), Storage())
        first, second, by_footer = count_requests(manifest, s3, responses=cached)
        assert first > 2 * (GROUPS + 1)
        assert second == 2 * GROUPS
        # which the commands that made the folders write for older ones
        sizes = measure_files(manifest.uri, manifest.shards(), Storage())
        folder = ShardedFolder(manifest.uri, HEADER_NAME, Storage())
        assert folder.is_whole(sizes, sum(sizes.values()), index_as=manifest.header.digest)
        assert count_requests(manifest, s3)[:2] == (GROUPS + 1, GROUPS)
    for one, other, plain in zip(answered, by_footer, tiles, strict=True):
        assert torch.equal(one.student, other.student)
        assert torch.equal(one.student, plain.student)
        assert one.response is not None
        assert other.response is not None
        assert torch.equal(one.response, other.response)


def test_row_groups_that_are_neighbors_are_one_request(manifest: Manifest, s3: S3Server) -> None:
    with patch.dict("os.environ", s3.environment()):
        cached = respond(manifest, f"{manifest.uri}-responses")
        with fault_proxy(s3.endpoint, Faults(rate=0)) as proxy:
            tiles = stream(manifest, Storage(endpoint=proxy.endpoint), responses=cached)
            counts = []
            for _ in range(2):
                batches = list(tiles.exact_pass())
                counts.append(proxy.counts["requests"])
        shuffled = epoch(stream(manifest, Storage(), responses=cached), 0)
    assert np.diff([0, *counts]).tolist() == [2 * (SHARDS + 1), 2 * SHARDS]
    seen = {int(tile): (batch, slot) for batch in shuffled for slot, tile in enumerate(batch.index)}
    for batch in batches:
        for slot, tile in enumerate(batch.index.tolist()):
            other, place = seen[tile]
            assert torch.equal(batch.student[slot], other.student[place])
            assert batch.response is not None
            assert other.response is not None
            assert torch.equal(batch.response[slot], other.response[place])


def test_a_forked_child_reads_by_connections_of_its_own(
    manifest: Manifest, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranged, "_MOST", 0)

    def read(tiles: TileStream, to: Any) -> None:
        to.put([batch.student.sum().item() for batch in epoch(tiles, 0)])

    with patch.dict("os.environ", s3.environment()), fault_proxy(s3.endpoint, Faults(rate=0)) as proxy:
        tiles = stream(manifest, Storage(endpoint=proxy.endpoint))
        expected = [batch.student.sum().item() for batch in epoch(tiles, 0)]
        forking = get_context("fork")
        answers = forking.Queue()
        child = forking.Process(target=read, args=(tiles, answers))
        child.start()
        assert [batch.student.sum().item() for batch in epoch(tiles, 0)] == expected
        assert answers.get(timeout=60) == expected
        child.join()
        assert proxy.counts["requests"] == 3 * GROUPS + 1


def test_a_shard_that_is_not_the_indexed_one_is_read_by_its_footer(manifest: Manifest, s3: S3Server) -> None:
    with patch.dict("os.environ", s3.environment()):
        before = epoch(stream(manifest, Storage()), 0)
        filesystem, path = arrow_filesystem(f"{manifest.uri}/{manifest.shards()[0]}", Storage())
        pq.write_table(pq.read_table(path, filesystem=filesystem), path, filesystem=filesystem, row_group_size=4)
        after = epoch(stream(manifest, Storage()), 0)
        for one, other in zip(before, after, strict=True):
            assert torch.equal(one.student, other.student)
        cached = respond(manifest, f"{manifest.uri}-of-one")
        other = respond(manifest, f"{manifest.uri}-of-another")
        control, _ = control_filesystem(cached.uri, Storage())
        shard = manifest.shards()[1]
        control.copy(f"{other.uri}/{shard}", f"{cached.uri}/{shard}")  # as long, byte for byte where the index looks
        with pytest.raises(InputError, match="do not belong to the cache"):
            epoch(stream(manifest, Storage(), responses=cached), 0)


def test_with_a_cache_later_epochs_and_later_processes_read_nothing(
    manifest: Manifest, s3: S3Server, tmp_path: Path
) -> None:
    with patch.dict("os.environ", s3.environment()), fault_proxy(s3.endpoint, Faults(rate=0)) as proxy:
        storage = Storage(endpoint=proxy.endpoint, cache=ShardCache(folder=str(tmp_path / "cache"), max_gb=0.1))
        tiles = stream(manifest, storage)
        read = epoch(tiles, 0)
        requests = proxy.counts["requests"]
        assert requests > 0
        epoch(tiles, 1)
        again = epoch(stream(manifest, storage), 0)
        assert proxy.counts["requests"] == requests
    for first, second in zip(read, again, strict=True):
        assert torch.equal(first.student, second.student)
        assert first.mask is not None
        assert second.mask is not None
        assert torch.equal(first.mask, second.mask)


def test_a_cache_that_is_too_small_is_no_harm(manifest: Manifest, s3: S3Server, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with patch.dict("os.environ", s3.environment()):
        storage = Storage(endpoint=s3.endpoint, cache=ShardCache(folder=str(folder), max_gb=1e-5))
        tiles = stream(manifest, storage)
        epoch(tiles, 0)
        epoch(tiles, 1)
    assert sum(path.stat().st_size for path in folder.rglob("*.arrow")) <= 10_000


def test_the_number_of_requests_at_once_is_limited(manifest: Manifest, s3: S3Server) -> None:
    with patch.dict("os.environ", s3.environment()), fault_proxy(s3.endpoint, Faults(rate=0)) as proxy:
        tiles = stream(manifest, Storage(endpoint=proxy.endpoint))
        reader = ShardReader(threads=1)
        busy: list[int] = []
        read = reader.read

        def counted(*arguments: object) -> object:
            busy.append(1)
            assert len(busy) == 1
            try:
                return read(*arguments)  # type: ignore[arg-type]
            finally:
                busy.pop()

        with patch.object(reader, "read", counted):
            object.__setattr__(tiles, "read", reader)
            epoch(tiles, 0)


@pytest.mark.parametrize("mode", MODES)
def test_broken_replies_change_no_batch(manifest: Manifest, s3: S3Server, mode: Mode) -> None:
    """Of every third reply nothing, or only a part, arrives."""
    faults = Faults(rate=0.3, stall_s=1.0, match=r"\.parquet")
    with patch.dict("os.environ", s3.environment()), small_tasks(mode):
        whole = [epoch(stream(manifest, Storage()), number) for number in range(6)]
        with fault_proxy(s3.endpoint, faults) as proxy:
            storage = Storage(endpoint=proxy.endpoint, attempts=9, retry_base_s=0.01, request_timeout_s=0.5)
            through_faults = read_in(mode, stream(manifest, storage))
            faulty = [epoch(through_faults, number) for number in range(6)]
            counts = proxy.counts
    assert sum(counts[kind] for kind in KINDS), counts
    for first, second in zip(chain.from_iterable(whole), chain.from_iterable(faulty), strict=True):
        for name in ("index", "valid", "student", "mask"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_a_server_that_stays_away_is_named(manifest: Manifest, s3: S3Server) -> None:
    storage = Storage(endpoint="http://127.0.0.1:9", attempts=2, retry_base_s=0.01, connect_timeout_s=0.2)
    with patch.dict("os.environ", s3.environment()), pytest.raises(InputError, match=r"127\.0\.0\.1:9") as caught:
        epoch(stream(manifest, storage), 0)
    assert len(str(caught.value).splitlines()) == 1
