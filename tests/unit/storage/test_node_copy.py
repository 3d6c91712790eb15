"""Copies that a node's processes share: one makes it, the others wait, and nothing half made is ever seen."""

import fcntl
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from histill.config.common import ShardCache, Storage
from histill.storage import node_copy
from histill.storage.node_copy import find_node_copy, open_node_copy

pytestmark = pytest.mark.unit


def storage_in(folder: Path) -> Storage:
    return Storage(cache=ShardCache(folder=str(folder), max_gb=1))


def make(folder: Path) -> None:
    (folder / "one").write_text("1")
    time.sleep(0.2)  # long enough for the others to come
    (folder / "by").write_text(str(os.getpid()))


def opened(folder: Path) -> tuple[str, str]:
    found = open_node_copy("copy", storage_in(folder), make)
    assert found is not None
    return (found / "one").read_text(), (found / "by").read_text()


def test_of_several_processes_one_makes_it(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(opened, [tmp_path] * 6))
    assert len(set(found)) == 1


def test_what_fails_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "one").write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        open_node_copy("copy", storage_in(tmp_path), fail)
    with (
        tmp_path / "shared" / "copy.lock"
    ).open() as lock:  # as another process would, which must not wait for this one
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (tmp_path / "shared" / "copy.part").mkdir()  # as a killed process leaves it
    (tmp_path / "shared" / "copy.part" / "surplus").touch()
    for harmed in ("by", "one", "sizes.json"):  # as a cleaner of old files leaves it
        found = open_node_copy("copy", storage_in(tmp_path), make)
        assert found is not None
        assert sorted(path.name for path in found.iterdir()) == ["by", "one", "sizes.json"]
        (found / harmed).unlink()


def test_a_look_neither_makes_nor_waits(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    assert find_node_copy("copy", storage) is None
    assert not (tmp_path / "shared").exists()
    (tmp_path / "shared" / "copy").mkdir(mode=0o700, parents=True)
    (tmp_path / "shared").chmod(0o700)
    assert find_node_copy("copy", storage) is None  # it is not whole
    with (tmp_path / "shared" / "copy.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nor does the look hold it
    made = open_node_copy("copy", storage, make)
    assert find_node_copy("copy", storage) == made
    other = tmp_path / "shared" / "other"
    shutil.copytree(tmp_path / "shared" / "copy", other)
    (tmp_path / "shared" / "other.lock").touch()
    with (tmp_path / "shared" / "other.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a process that makes it
        assert find_node_copy("other", storage) is None
    assert find_node_copy("other", storage) == other
    with (tmp_path / "shared" / "other.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as one that would remove it


def test_a_folder_that_others_may_read_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "shared").mkdir(mode=0o755)
    assert open_node_copy("copy", storage_in(tmp_path), make) is None
    assert "only this user can read" in caplog.text
    (tmp_path / "shared" / "copy").mkdir()
    assert find_node_copy("copy", storage_in(tmp_path)) is None


def test_copies_that_nobody_has_used_for_a_week_are_removed(tmp_path: Path) -> None:
    root = tmp_path / "shared"
    for name in ("old", "fresh"):
        root.mkdir(mode=0o700, exist_ok=True)
        (root / name).mkdir()
        (root / f"{name}.lock").touch()
    held = open_node_copy("held", storage_in(tmp_path), make)
    long_ago = time.time() - 8 * 24 * 3600
    for name in ("old", "held"):
        os.utime(root / f"{name}.lock", (long_ago, long_ago))
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn")
    ) as pool:  # for this process holds no lock against itself
        pool.submit(opened, tmp_path).result()
    assert held is not None
    assert held.exists()
    assert not (root / "old").exists()
    assert (root / "fresh").exists()
    assert node_copy._root(Storage()).name == f"histill-shared-{os.geteuid()}"
