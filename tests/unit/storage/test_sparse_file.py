"""An object of which only what is asked for is fetched: never other bytes, none twice, and of one version."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.object_ranges import ObjectRanges
from histill.storage.sparse_file import BLOCK, GAP, LONGEST, SparseFile
from testbed.folder_bucket import FolderBucket, folder_bucket

pytestmark = pytest.mark.unit

STORAGE = Storage(attempts=2, retry_base_s=0.01)
SIZE = 40 * BLOCK + 1234
DATA = np.random.default_rng(0).bytes(SIZE)
URI = "s3://b/object"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FolderBucket]:
    root = tmp_path_factory.mktemp("buckets")
    (root / "b").mkdir()
    (root / "b" / "object").write_bytes(DATA)
    (root / "b" / "empty").touch()
    with folder_bucket(root) as found:
        yield found


SPANS = st.lists(st.tuples(st.integers(-BLOCK, SIZE + BLOCK), st.integers(0, 5 * BLOCK)), min_size=1, max_size=5)


@settings(max_examples=15)
@given(st.lists(SPANS, min_size=1, max_size=3))
def test_what_is_asked_for_is_there_and_is_read_once(bucket: FolderBucket, asked: list[list[tuple[int, int]]]) -> None:
    with closing(SparseFile(ObjectRanges(URI, STORAGE))) as file:
        bucket.ranges.clear()
        wanted = np.zeros(SIZE, bool)
        for spans in asked:
            file.fetch(*np.array(spans, np.int64).T)
            for start, length in spans:
                wanted[max(0, start) : max(0, start + length)] = True
        with open(file.path, "rb") as raw:
            found = np.frombuffer(raw.read(), np.uint8)
        assert len(found) == SIZE
        expected = np.frombuffer(DATA, np.uint8)
        assert (found[wanted] == expected[wanted]).all()
        read = np.zeros(SIZE, int)
        for _, start, length in bucket.ranges:
            assert length <= LONGEST * BLOCK
            read[start : start + length] += 1
        assert (found[read > 0] == expected[read > 0]).all()
        assert (found[read == 0] == 0).all()
        blocks = np.unique(np.flatnonzero(wanted) // BLOCK)
        assert bucket.bytes_read <= (len(blocks) * (GAP + 1)) * BLOCK
        assert file.fetched >= wanted.sum()
        bucket.ranges.clear()
        for spans in asked:
            file.fetch(*np.array(spans, np.int64).T)
        assert bucket.ranges == []
        file.fetch_all()
        assert file.read_at(0, SIZE + 5) == DATA


def test_neighbors_are_one_request(bucket: FolderBucket) -> None:
    with closing(SparseFile(ObjectRanges(URI, STORAGE))) as file:
        bucket.ranges.clear()
        near, far = np.array([0, BLOCK * GAP]), np.array([0, BLOCK * (GAP + 2)])
        file.fetch(near + 7 * BLOCK, np.array([1, 1]))
        assert [(start, length) for _, start, length in bucket.ranges] == [(7 * BLOCK, (GAP + 1) * BLOCK)]
        file.fetch(far + 20 * BLOCK, np.array([1, 1]))
        assert len(bucket.ranges) == 3


def test_as_a_file(bucket: FolderBucket) -> None:
    with closing(SparseFile(ObjectRanges(URI, STORAGE))) as file, file.open() as reader:
        assert reader.seek(-100, os.SEEK_END) == SIZE - 100
        assert reader.read(1000) == DATA[-100:]
        assert reader.read(10) == b""
        reader.seek(BLOCK - 5)
        assert reader.read(10) == DATA[BLOCK - 5 : BLOCK + 5]
        assert reader.tell() == BLOCK + 5


def test_an_empty_object(bucket: FolderBucket) -> None:
    with closing(SparseFile(ObjectRanges("s3://b/empty", STORAGE))) as file:
        file.fetch_all()
        assert file.read_at(0, 10) == b""
        assert os.path.getsize(file.path) == 0


def test_a_full_disk_and_a_missing_object(bucket: FolderBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        ObjectRanges("s3://b/none", STORAGE)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with closing(SparseFile(ObjectRanges(URI, STORAGE))) as file, monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        said = rf"{URI} cannot be fetched into {tempfile.gettempdir()} \(No space left on device\); set TMPDIR"
        for starts in ([0], [0, 30 * BLOCK]):
            with pytest.raises(InputError, match=said):
                file.fetch(np.array(starts), np.full(len(starts), 10))
        patch.undo()
        assert file.read_at(0, 10) == DATA[:10]  # what was not written is not taken for what is there


@pytest.mark.parametrize("by_range", [True, False])
def test_a_replaced_object_is_refused(tmp_path: Path, by_range: bool) -> None:
    (tmp_path / "b").mkdir()
    path = tmp_path / "b" / "object"
    for change in (lambda: path.write_bytes(DATA[::-1]), path.unlink):
        path.write_bytes(DATA)
        with folder_bucket(tmp_path, by_range=by_range):
            ranges = ObjectRanges(URI, STORAGE)
            assert ranges.read(100, 50).to_pybytes() == DATA[100:150]
            change()
            with pytest.raises(InputError, match=rf"{URI} has been replaced or removed while it was read"):
                ranges.read(BLOCK, 50)


def test_an_object_that_changes_before_the_first_range(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    path = tmp_path / "b" / "object"
    path.write_bytes(DATA)
    with folder_bucket(tmp_path):
        ranges = ObjectRanges(URI, STORAGE)
        path.write_bytes(DATA[::-1])
        with pytest.raises(InputError, match="has been replaced"):
            ranges.read(0, 10)


def test_where_a_range_fails_pyarrows_client_reads_it(bucket: FolderBucket) -> None:
    def broken(path: str, start: int, length: int) -> tuple[pa.Buffer, int]:
        raise ConnectionResetError

    ranges = ObjectRanges(URI, STORAGE, broken)
    assert ranges.read(5, 100).to_pybytes() == DATA[5:105]
    with pytest.raises(InputError, match=r"does not serve|cannot be used|cannot be reached"):
        ranges.read(SIZE - 10, 100)
