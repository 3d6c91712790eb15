"""The node-local cache: what is put comes back, the size limit holds, and no failure stops reading."""

import fcntl
import logging
import multiprocessing
import os
import stat
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from histill.config.common import ShardCache, Storage
from histill.storage.cache import RowGroupCache

pytestmark = pytest.mark.unit

TILES_BYTES = 40_000
FILE_BYTES = 41_000  # framing included; checked below


def table(number: int) -> pa.Table:
    images = [bytes([number % 256, row]) * (TILES_BYTES // 8) for row in range(4)]
    return pa.table({"tile_id": [f"{number}/{row}" for row in range(4)], "image": pa.array(images, pa.binary())})


def held(folder: Path) -> int:
    """Bytes of the row groups below `folder`, unfinished ones included."""
    return sum(path.stat().st_size for path in folder.glob("row-groups-*/*"))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("row-groups-*/*.arrow"))


def test_a_table_comes_back_without_a_copy(tmp_path: Path) -> None:
    cache = RowGroupCache(str(tmp_path / "cache"), 10 * FILE_BYTES, "set")
    assert cache.get("shard/0") is None
    before = pa.total_allocated_bytes()
    assert cache.put("shard/0", table(1))
    got = cache.get("shard/0")
    assert got is not None
    assert pa.total_allocated_bytes() - before < TILES_BYTES / 4
    assert got.equals(table(1))
    assert cache.get("shard/1") is None
    assert TILES_BYTES < held(tmp_path / "cache") < FILE_BYTES


def test_another_process_finds_it(tmp_path: Path) -> None:
    RowGroupCache(str(tmp_path), 10 * FILE_BYTES, "set").put("a", table(1))
    again = RowGroupCache(str(tmp_path), 10 * FILE_BYTES, "set").get("a")
    assert again is not None
    assert again.equals(table(1))
    assert RowGroupCache(str(tmp_path), 10 * FILE_BYTES, "other set").get("a") is None


def test_a_table_without_rows_or_with_several_chunks_comes_back(tmp_path: Path) -> None:
    cache = RowGroupCache(str(tmp_path), 10 * FILE_BYTES, "set")
    for name, kept in (("none", table(1).slice(0, 0)), ("two", pa.concat_tables([table(1), table(2)]))):
        assert cache.put(name, kept)
        got = cache.get(name)
        assert got is not None
        assert got.equals(kept)


def test_only_the_owner_can_read(tmp_path: Path) -> None:
    cache = RowGroupCache(str(tmp_path / "cache"), 10 * FILE_BYTES, "set")
    cache.put("a", table(1))
    for path in (tmp_path / "cache", *(tmp_path / "cache").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_full_cache_keeps_what_it_has(tmp_path: Path) -> None:
    cache = RowGroupCache(str(tmp_path), 3 * FILE_BYTES, "set")
    kept = [cache.put(str(number), table(number)) for number in range(6)]
    assert kept == [True, True, True, False, False, False]
    assert [cache.get(str(number)) is not None for number in range(6)] == kept
    assert cache.put("0", table(0))  # exists already
    assert held(tmp_path) <= 3 * FILE_BYTES


def test_what_is_larger_than_the_cache_drives_nothing_out(tmp_path: Path) -> None:
    RowGroupCache(str(tmp_path), 3 * FILE_BYTES, "old").put("a", table(1))
    large = pa.concat_tables([table(number) for number in range(4)])
    assert not RowGroupCache(str(tmp_path), 3 * FILE_BYTES, "new").put("large", large)
    assert RowGroupCache(str(tmp_path), 3 * FILE_BYTES, "old").get("a") is not None


def test_the_set_out_of_use_for_longest_leaves_first(tmp_path: Path) -> None:
    RowGroupCache(str(tmp_path), 3 * FILE_BYTES, "first").put("a", table(0))
    (marker,) = tmp_path.glob("*/.in-use")
    os.utime(marker, (1000, 1000))
    RowGroupCache(str(tmp_path), 3 * FILE_BYTES, "second").put("a", table(1))
    cache = RowGroupCache(str(tmp_path), 3 * FILE_BYTES, "third")
    assert cache.put("a", table(2))
    assert cache.put("b", table(3))
    assert RowGroupCache(str(tmp_path), 3 * FILE_BYTES, "first").get("a") is None
    assert RowGroupCache(str(tmp_path), 3 * FILE_BYTES, "second").get("a") is not None


def test_a_set_in_use_stays(tmp_path: Path) -> None:
    other = RowGroupCache(str(tmp_path), 2 * FILE_BYTES, "other")
    assert other.put("a", table(1))
    assert other.put("b", table(1))
    cache = RowGroupCache(str(tmp_path), 2 * FILE_BYTES, "set")
    assert not cache.put("a", table(2))
    assert other.get("a") is not None
    del other
    assert cache.put("a", table(2))


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat").write_bytes(b"x" * 3 * FILE_BYTES)
    (tmp_path / "row-groups-not-made-by-a-cache").mkdir()
    cache = RowGroupCache(str(tmp_path), FILE_BYTES, "set")
    assert cache.put("a", table(1))
    assert not cache.put("b", table(1))
    assert (tmp_path / "photos" / "cat").exists()
    assert (tmp_path / "row-groups-not-made-by-a-cache").exists()


def test_a_lower_bound_holds_from_the_start(tmp_path: Path) -> None:
    first = RowGroupCache(str(tmp_path), 6 * FILE_BYTES, "set")
    assert all(first.put(str(number), table(number)) for number in range(4))
    RowGroupCache(str(tmp_path), 6 * FILE_BYTES, "other").put("a", table(0))
    RowGroupCache(str(tmp_path), 3 * FILE_BYTES, "set")
    assert len(files(tmp_path)) == 3
    assert RowGroupCache(str(tmp_path), 6 * FILE_BYTES, "other").get("a") is None


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "garbage"])
def test_a_damaged_file_is_a_miss(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    RowGroupCache(str(tmp_path), FILE_BYTES, "set").put("a", table(1))
    (path,) = files(tmp_path)
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "cut": data[:middle],
            "emptied": b"",
            "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "garbage": b"x" * len(data),
        }[damage]
    )
    cache = RowGroupCache(str(tmp_path), FILE_BYTES, "set")
    assert cache.get("a") is None
    assert files(tmp_path) == []
    assert "damaged" in caplog.text
    assert cache.put("a", table(1))  # there is room for it again
    assert cache.get("a") is not None


def test_a_mapped_table_outlives_its_file(tmp_path: Path) -> None:
    cache = RowGroupCache(str(tmp_path), FILE_BYTES, "set")
    cache.put("a", table(1))
    got = cache.get("a")
    files(tmp_path)[0].unlink()
    assert got is not None
    assert got.equals(table(1))
    assert cache.get("a") is None


@pytest.mark.parametrize("accounts", [None, b"", b"{}", b'{"cut'])
def test_lost_accounts_are_made_again(tmp_path: Path, accounts: bytes | None) -> None:
    cache = RowGroupCache(str(tmp_path), 2 * FILE_BYTES, "set")
    cache.put("a", table(1))
    path = tmp_path / ".accounts.json"
    path.unlink() if accounts is None else path.write_bytes(accounts)
    assert cache.put("b", table(2))
    assert not cache.put("c", table(3))


def test_accounts_follow_what_others_do_to_the_folder(tmp_path: Path) -> None:
    cache = RowGroupCache(str(tmp_path), 2 * FILE_BYTES, "set")
    assert cache.put("a", table(1))
    assert cache.put("b", table(2))
    assert not cache.put("c", table(3))
    files(tmp_path)[0].unlink()
    assert cache.put("c", table(3))
    leftover = files(tmp_path)[0].with_suffix(".0.part")  # of a process that was killed while writing
    leftover.write_bytes(b"x" * FILE_BYTES)
    assert not cache.put("d", table(4))
    assert not leftover.exists()


def test_a_folder_that_cannot_be_written_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = RowGroupCache(str(tmp_path / "file" / "cache"), FILE_BYTES, "set")
    assert cache.get("a") is None
    assert not cache.put("a", table(1))
    assert not cache.put("b", table(1))
    assert caplog.text.count("stores nothing more") == 1


def test_a_folder_that_others_can_read_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    RowGroupCache(str(tmp_path), FILE_BYTES, "set").put("a", table(1))
    files(tmp_path)[0].parent.chmod(0o755)
    cache = RowGroupCache(str(tmp_path), FILE_BYTES, "set")
    assert cache.get("a") is None
    assert not cache.put("b", table(1))
    assert caplog.text.count("only this user can read") == 1


def test_a_full_disk_warns_once_and_reading_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = RowGroupCache(str(tmp_path), 10 * FILE_BYTES, "set")
    assert cache.put("a", table(1))

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert not cache.put("b", table(2))
    assert not cache.put("c", table(2))
    assert caplog.text.count("No space left on device") == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert cache.get("a") is not None
    assert not list(tmp_path.rglob("*.part"))


def fill(folder: str, max_bytes: int, worker: int, kept: "multiprocessing.Queue[list[int]]") -> None:
    cache = RowGroupCache(folder, max_bytes, "set")
    numbers = [(worker * 7 + step) % 20 for step in range(20)]  # each worker in another order
    done = [number for number in numbers if cache.put(str(number), table(number))]
    for number in done:
        got = cache.get(str(number))
        assert got is not None
        assert got.equals(table(number))
    kept.put(done)


def test_the_bound_holds_with_several_processes(tmp_path: Path) -> None:
    bound = 8 * FILE_BYTES
    RowGroupCache(str(tmp_path), bound, "yesterday's").put("a", table(0))
    context = multiprocessing.get_context("spawn")
    kept: multiprocessing.Queue[list[int]] = context.Queue()
    workers = [context.Process(target=fill, args=(str(tmp_path), bound, worker, kept)) for worker in range(2)]
    for worker in workers:
        worker.start()
    largest = 0
    while any(worker.is_alive() for worker in workers):
        with (tmp_path / ".lock").open() as lock:  # otherwise files could change while they are counted
            fcntl.flock(lock, fcntl.LOCK_EX)
            largest = max(largest, held(tmp_path))
        time.sleep(0.005)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    there = set().union(*(kept.get(timeout=10) for _ in workers))
    assert len(there) == len(files(tmp_path)) == 8
    assert 0 < largest <= bound
    assert held(tmp_path) <= bound


def test_the_configuration_is_strict() -> None:
    storage = Storage.model_validate({"cache": {"folder": "/scratch/tiles", "max_gb": 0.5}})
    assert storage.cache == ShardCache(folder="/scratch/tiles", max_gb=0.5)
    assert storage.cache.max_bytes == 500_000_000
    for folder, max_gb in (("s3://b/tiles", 1.0), ("tiles", 1.0), ("/scratch", 0.0)):
        with pytest.raises(ValidationError):
            ShardCache.model_validate({"folder": folder, "max_gb": max_gb})
