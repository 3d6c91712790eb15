"""Wherever a writer is interrupted, the file is whole or absent, in a folder and in a store like S3."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from histill.config.common import Storage
from histill.storage import control, tables

pytestmark = pytest.mark.unit

STORAGE = Storage()
SCHEMA = pa.schema([("tile_id", pa.string()), ("image", pa.binary())])
GROUPS = [pa.table([[f"{group}/{row}" for row in range(4)], [bytes(100)] * 4], schema=SCHEMA) for group in range(4)]


class Store:
    """Objects in memory, behind fsspec's interface. Like S3's, its streams complete an object when they are closed."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def pipe_file(self, uri: str, data: bytes, **_: Any) -> None:
        self.objects[uri] = data

    def open(self, uri: str, *_: Any) -> io.BytesIO:
        store = self

        class Stream(io.BytesIO):
            def close(self) -> None:
                if not self.closed:
                    store.objects[uri] = self.getvalue()
                super().close()

        return Stream()

    def cat_file(self, uri: str) -> bytes:
        if uri not in self.objects:
            raise FileNotFoundError(uri)
        return self.objects[uri]


@pytest.fixture(params=["folder", "store"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        return str(tmp_path / "set" / "shard.parquet")
    store = Store()
    monkeypatch.setattr(control, "control_filesystem", lambda uri, _: (store, uri))
    return "s3://bucket/set/shard.parquet"


def interrupted(action: Callable[[], object], at: int, error: type[BaseException]) -> bool:
    """Run `action`, and raise at the `at`-th line of storage code that it reaches; return whether it got that far."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if "histill/storage" not in frame.f_code.co_filename:
            return None
        if event == "line":
            lines += 1
            if lines == at:
                raise error
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except error:
        return True
    finally:
        sys.settrace(before)
    return False


def held(uri: str) -> bytes | None:
    try:
        return control.read_bytes(uri, STORAGE)
    except FileNotFoundError:
        return None


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_shard_that_is_interrupted_at_any_line_is_whole_or_absent(uri: str, error: type[BaseException]) -> None:
    at = 1
    while interrupted(lambda: tables.write_table(uri, GROUPS, SCHEMA, STORAGE), at, error):
        found = held(uri)
        assert found is None or pq.read_table(io.BytesIO(found)).num_rows == 16, at
        if not uri.startswith("s3://"):
            assert os.listdir(Path(uri).parent.parent) in ([], ["set"])
            Path(uri).unlink(missing_ok=True)
        at += 1
    assert at > 10
    assert pq.read_table(io.BytesIO(held(uri) or b"")).num_rows == 16
    if not uri.startswith("s3://"):
        assert os.listdir(Path(uri).parent) == ["shard.parquet"]


def test_a_shard_whose_tiles_fail_is_absent(uri: str) -> None:
    def groups() -> Iterator[pa.Table]:
        yield GROUPS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tables.write_table(uri, groups(), SCHEMA, STORAGE)
    assert held(uri) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_small_file_that_is_interrupted_at_any_line_is_the_old_or_the_new(
    uri: str, error: type[BaseException]
) -> None:
    control.write_bytes(uri, b"old", STORAGE)
    at = 1
    while interrupted(lambda: control.write_bytes(uri, b"new", STORAGE), at, error):
        assert held(uri) in (b"old", b"new"), at
        control.write_bytes(uri, b"old", STORAGE)
        at += 1
    assert at > 4
    assert held(uri) == b"new"


def test_a_file_that_is_a_part_of_something_else_or_damaged_is_not_read(tmp_path: Path) -> None:
    uri = str(tmp_path / "shard.parquet")
    size = tables.write_table(uri, GROUPS, SCHEMA, STORAGE, belongs_to="one")
    assert size == os.path.getsize(uri)
    table = tables.read_columns(uri, ["tile_id"], STORAGE, belongs_to="one")
    assert table is not None
    assert table["tile_id"].to_pylist()[:5] == ["0/0", "0/1", "0/2", "0/3", "1/0"]
    assert tables.read_columns(uri, ["tile_id"], STORAGE, belongs_to="another") is None
    whole = Path(uri).read_bytes()
    for at in [*range(0, len(whole), 37), len(whole) - 1]:
        Path(uri).write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        found = tables.read_columns(uri, ["tile_id", "image"], STORAGE)
        assert found is None or found.equals(pa.concat_tables(GROUPS)), at
    Path(uri).write_bytes(whole[:-100])
    assert tables.read_columns(uri, ["tile_id"], STORAGE) is None
