"""The engine under ingest, response caches and predictions: killed at any write and run again, it ends the same."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histill.cluster.sharded import ShardedFolder, check_unchanged, name_by_content, run_sharded
from histill.config.common import Storage
from histill.errors import InputError
from histill.storage import control
from histill.storage.control import read_bytes, write_bytes
from histill.storage.records import Record, read_record
from histill.storage.uris import join

pytestmark = pytest.mark.unit

STORAGE = Storage()
SHARDS = [f"shards/{number}" for number in range(3)]
WRITES = len(SHARDS) + 2  # a table beside the shards, and the header


class Header(Record):
    """What the fake job finds out."""

    noun: ClassVar[str] = "a header"
    remedy: ClassVar[str] = "run it again"

    total: int
    shard_bytes: int | None = None


class Killed(BaseException):
    """What no code expects."""


@dataclass
class Disk:
    """Ends the job at its write number `kill`, counted from 0, before it or after it; notes what is written."""

    kill: int | None = None
    after: bool = False
    written: list[str] = field(default_factory=list)

    @contextmanager
    def watched(self) -> Iterator["Disk"]:
        write = control.write_bytes

        def write_or_die(uri: str, data: bytes, storage: Storage) -> None:
            number = len(self.written)
            if number == self.kill and not self.after:
                raise Killed
            write(uri, data, storage)
            self.written.append(uri)
            if number == self.kill:
                raise Killed

        with patch("histill.storage.records.write_bytes", write_or_die), patch(f"{__name__}.write_bytes", write_or_die):
            yield self


def make_shard(uri: str, name: str) -> int:
    """A worker: ten bytes for each place of its number; keeps what an earlier run has written, if it is whole."""
    target, data = join(uri, name), name.encode() * 10
    try:
        whole = read_bytes(target, STORAGE) == data
    except FileNotFoundError:
        whole = False
    if not whole:
        write_bytes(target, data, STORAGE)
    return len(data)


def job(uri: str) -> tuple[Header, bool]:
    """The header, and whether it was there."""
    folder = ShardedFolder(uri, "header.json", STORAGE)
    header = folder.read_header(lambda: read_record(Header, join(uri, "header.json"), STORAGE))
    if header is not None and folder.is_whole(SHARDS, header.shard_bytes):
        return header, True
    sizes = run_sharded(map(partial(make_shard, uri), SHARDS), len(SHARDS), title="making", unit="shards")
    write_bytes(join(uri, "table.csv"), str(sorted(sizes)).encode(), STORAGE)
    return folder.finish(Header(total=sum(sizes)), SHARDS), False


def contents(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    uri = str(tmp_path_factory.mktemp("undisturbed"))
    with Disk().watched() as disk:
        assert job(uri) == (Header(total=240, shard_bytes=240), False)
        assert job(uri) == (Header(total=240, shard_bytes=240), True)
    assert len(disk.written) == WRITES
    assert disk.written[-1] == join(uri, "header.json")
    return contents(uri)


@given(kills=st.lists(st.tuples(st.integers(0, WRITES - 1), st.booleans()), max_size=4))
def test_a_job_that_is_killed_at_any_writes_ends_as_undisturbed(
    undisturbed: dict[str, bytes], kills: list[tuple[int, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as uri:
        for kill, after in kills:
            before = contents(uri)
            with Disk(kill, after).watched() as disk:
                try:
                    job(uri)
                except Killed:
                    assert before.items() <= contents(uri).items()  # what was there is not touched
            assert len({*disk.written}) == len(disk.written)
        finished = "header.json" in contents(uri)
        assert job(uri)[1] == finished  # a header that is there is true
        assert contents(uri) == undisturbed


@given(
    harm=st.dictionaries(
        st.sampled_from([*SHARDS, "header.json"]), st.sampled_from(["lose", "cut", "spoil"]), min_size=1
    )
)
def test_what_is_lost_or_cut_short_is_made_again_and_nothing_else(
    undisturbed: dict[str, bytes], harm: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as uri:
        job(uri)
        for name, how in harm.items():
            path = Path(uri, name)
            if how == "lose":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[:-3] if how == "cut" else b"")
        with Disk().watched() as disk:
            assert not job(uri)[1]
        assert contents(uri) == undisturbed
        shards = {name for name in harm if name != "header.json"}
        assert disk.written == [*(join(uri, name) for name in SHARDS if name in shards), *disk.written[len(shards) :]]
        assert len(disk.written) == len(shards) + 2


def test_a_header_without_bytes_declares_nothing_finished(tmp_path: Path) -> None:
    folder = ShardedFolder(str(tmp_path), "header.json", STORAGE)
    assert folder.finish(Header(total=0), SHARDS).shard_bytes is None  # of a job whose shards are gone
    assert not folder.is_whole(SHARDS, None)
    assert folder.is_whole([], 0)


def test_a_header_that_cannot_be_read_is_an_error_where_it_is_not_to_be_made_again(tmp_path: Path) -> None:
    folder, uri = ShardedFolder(str(tmp_path), "header.json", STORAGE), str(tmp_path / "header.json")
    read = partial(read_record, Header, uri, STORAGE)
    assert folder.read_header(read) is None
    Path(uri).write_bytes(b"{")
    assert folder.read_header(read) is None
    with pytest.raises(InputError, match=r"header\.json is not a header of this version"):
        folder.read_header(read, repair=False)


@pytest.mark.parametrize("done", [[2, 2], [2, 2, 1, 1], []])
def test_work_that_is_lost_or_doubled_is_found(done: list[int]) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"cutting: {sum(done)} tiles were done of 5")):
        run_sharded(done, 5, title="cutting", unit="tiles", count=lambda tiles: tiles)


def test_progress_counts_units_and_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_sharded(iter([3, 2]), 5, title="cutting", unit="tiles", count=lambda tiles: tiles) == [3, 2]
    assert re.search("cutting 100% 5/5 tiles  ETA 0:00", capsys.readouterr().err)


def test_names_stay_those_of_folders_that_are_there() -> None:
    """SHA-256 of the parts with colons between them, as caches and predictions have been named from the first."""
    assert name_by_content("teacher", "tiles", "upright") == "effaba92b1e0b08b"
    assert len({name_by_content(*parts) for parts in (("a", "b"), ("a", "c"), ("b", "b"), ("a",))}) == 4


def test_another_digest_than_at_the_start_is_refused() -> None:
    check_unchanged("s3://models/a", "1", "1")
    with pytest.raises(InputError, match="s3://models/a was replaced while this job was reading it"):
        check_unchanged("s3://models/a", "1", "2")
