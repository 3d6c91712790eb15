"""The stream against a real S3 server: what is read once, and what is read again."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from histill.config.common import ShardCache, Storage
from histill.errors import InputError
from histill.local.s3 import S3Server
from histill.stream.read import ShardReader, TileSource
from histill.stream.tile_batch import TileBatch
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tiles.manifest import Manifest
from testbed.fault_proxy import Faults, fault_proxy

pytestmark = pytest.mark.cluster

TILES, SHARDS, GROUPS = 24, 2, 4  # of split train: 16 tiles in two shards of two row groups each


@pytest.fixture
def manifest(s3: S3Server, tile_set: Callable[..., Manifest], tmp_path: Path) -> Manifest:
    with patch.dict("os.environ", s3.environment()):
        return tile_set(f"s3://{s3.bucket}/stream/{tmp_path.name}", tiles=TILES, tile_px=32)


def stream(manifest: Manifest, storage: Storage) -> TileStream:
    return TileStream(
        manifest=manifest,
        source=TileSource(manifest.uri, manifest.header.digest, storage, masks=True),
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


def test_a_row_group_is_one_request_and_a_footer_is_read_once(manifest: Manifest, s3: S3Server) -> None:
    with patch.dict("os.environ", s3.environment()), fault_proxy(s3.endpoint, Faults(rate=0)) as proxy:
        tiles = stream(manifest, Storage(endpoint=proxy.endpoint))
        epoch(tiles, 0)
        first = proxy.counts
        epoch(tiles, 1)
        second = proxy.counts
    assert first["gets"] <= GROUPS + 2 * SHARDS
    assert second["requests"] - first["requests"] == GROUPS


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


def test_a_server_that_stays_away_is_named(manifest: Manifest, s3: S3Server) -> None:
    storage = Storage(endpoint="http://127.0.0.1:9", attempts=2, retry_base_s=0.01, connect_timeout_s=0.2)
    with patch.dict("os.environ", s3.environment()), pytest.raises(InputError, match=r"127\.0\.0\.1:9") as caught:
        epoch(stream(manifest, storage), 0)
    assert len(str(caught.value).splitlines()) == 1
