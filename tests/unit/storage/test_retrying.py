"""The file system for Ray Train's own files: every request is retried, and files are written atomically."""

import errno
import gc
import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from pyarrow import fs

from histill.config.common import Storage
from histill.storage import retry, retrying
from histill.storage.retrying import retrying_filesystem

pytestmark = pytest.mark.unit

STORAGE = Storage(attempts=4)
AWAY = "AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 7, Couldn't connect to server"
DENIED = "AWS Error ACCESS_DENIED during PutObject operation: Access Denied"


class Flaky:
    """A local folder that fails each kind of request `times` times before serving it; files fail when closed."""

    type_name = "flaky"

    def __init__(self, folder: Path, times: int, message: str = AWAY) -> None:
        self._files = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
        self._times, self._message = times, message
        self.asked: Counter[str] = Counter()

    def _ask(self, name: str) -> None:
        self.asked[name] += 1
        if self.asked[name] <= self._times:
            raise OSError(self._message)

    def normalize_path(self, path: str) -> str:
        return path  # makes no request

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def request(*arguments: Any, **options: Any) -> Any:
            self._ask(name)
            return getattr(self._files, name)(*arguments, **options)

        return request

    def pipe_file(self, uri: str, content: bytes, **_: Any) -> None:
        """fsspec's method for writing a whole file."""
        self._ask("pipe_file")
        with self._files.open_output_stream(uri.removeprefix("s3://")) as stream:
            stream.write(content)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The recorded waits in seconds, without waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", seconds.append)
    return seconds


def serve(monkeypatch: pytest.MonkeyPatch, inner: Any) -> None:
    """Let `inner` stand in for the server, for either client."""
    monkeypatch.setattr(retrying, "arrow_filesystem", lambda uri, storage, **_: (inner, uri.removeprefix("s3://")))
    monkeypatch.setattr(retrying, "control_filesystem", lambda uri, storage: (inner, uri))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Callable[..., Any]:
    """`files(times, message)`: a retrying file system whose server is a `Flaky`, and that `Flaky`."""

    def make(times: int, message: str = AWAY) -> tuple[fs.FileSystem, Flaky]:
        inner = Flaky(tmp_path, times, message)
        serve(monkeypatch, inner)
        made, path = retrying_filesystem("s3://runs/first", STORAGE)
        assert path == "runs/first"
        return made, inner

    return make


def test_local_files_need_no_second_try(tmp_path: Path) -> None:
    filesystem, path = retrying_filesystem(str(tmp_path), STORAGE)
    assert type(filesystem) is fs.LocalFileSystem
    assert path == str(tmp_path)


class Forgetful(Flaky):
    """Does what it is asked, then fails instead of replying."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def request(*arguments: Any, **options: Any) -> Any:
            done = getattr(self._files, name)(*arguments, **options)
            self._ask(name)
            return done

        return request


@pytest.mark.parametrize(("name", "arguments"), [("delete_file", ["a"]), ("delete_dir", ["b"]), ("move", ["a", "c"])])
def test_what_is_gone_already_since_only_the_reply_was_lost_is_no_error(
    name: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").mkdir()
    inner = Forgetful(tmp_path, 1)
    monkeypatch.setattr(retrying, "arrow_filesystem", lambda *_, **__: (inner, ""))
    filesystem, _ = retrying_filesystem("s3://runs", STORAGE)
    getattr(filesystem, name)(*arguments)
    assert not (tmp_path / arguments[0]).exists()
    assert len(waits) == 1
    with pytest.raises(FileNotFoundError):  # it never existed
        getattr(filesystem, name)(*arguments)


def test_every_request_is_repeated_until_it_is_served(
    files: Callable[..., Any], tmp_path: Path, waits: list[float]
) -> None:
    filesystem, inner = files(3)
    content = bytes(range(256)) * 5000
    filesystem.create_dir("runs/first", recursive=True)
    with filesystem.open_output_stream("runs/first/a") as stream:
        for start in range(0, len(content), 99_991):
            stream.write(content[start : start + 99_991])
    assert (tmp_path / "runs" / "first" / "a").read_bytes() == content
    with filesystem.open_input_stream("runs/first/a") as stream:
        assert stream.read() == content
    with filesystem.open_input_file("runs/first/a") as file:
        file.seek(1000)
        assert file.read(2000) == content[1000:3000]
    filesystem.copy_file("runs/first/a", "runs/first/b")
    filesystem.move("runs/first/b", "runs/first/c")
    filesystem.delete_file("runs/first/a")
    assert filesystem.get_file_info("runs/first/c").size == len(content)
    assert [info.base_name for info in filesystem.get_file_info(fs.FileSelector("runs/first"))] == ["c"]
    filesystem.delete_dir_contents("runs/first")
    assert list((tmp_path / "runs" / "first").iterdir()) == []
    filesystem.delete_dir("runs/first")
    assert not (tmp_path / "runs" / "first").exists()
    asked = set(inner.asked)
    assert asked == {
        *("create_dir", "pipe_file", "open_input_file", "copy_file", "move", "delete_file"),
        *("get_file_info", "delete_dir_contents", "delete_dir"),
    }
    assert len(waits) == 3 * len(asked)


def test_what_stays_away_is_raised_after_the_last_try_and_not_lost_with_the_stream(
    files: Callable[..., Any], waits: list[float]
) -> None:
    filesystem, inner = files(100)
    stream = filesystem.open_output_stream("file")
    stream.write(b"content")
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        stream.close()
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        filesystem.get_file_info("file")
    assert inner.asked == {"pipe_file": 12, "get_file_info": 12}
    assert len(waits) == 22


@pytest.mark.parametrize(("attempts", "made"), [(1, 12), (20, 20)])
def test_its_patience_is_that_of_a_restart_or_more(
    files: Callable[..., Any], attempts: int, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "STORAGE", Storage(attempts=attempts))
    filesystem, inner = files(100)
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        filesystem.get_file_info("file")
    assert inner.asked == {"get_file_info": made}


@pytest.mark.parametrize(("message", "error"), [(DENIED, OSError), ("", FileNotFoundError)])
def test_what_lasts_is_raised_at_once(
    files: Callable[..., Any], waits: list[float], message: str, error: type[OSError]
) -> None:
    filesystem, inner = files(1 if message else 0, message)
    with pytest.raises(error):
        filesystem.open_input_file("missing")
    assert inner.asked == {"open_input_file": 1}
    assert waits == []


def test_a_file_that_is_being_written_is_not_there_yet(files: Callable[..., Any], tmp_path: Path) -> None:
    filesystem, _ = files(0)
    (tmp_path / "file").write_bytes(b"before")
    with filesystem.open_output_stream("file") as stream:
        stream.write(b"after")
        stream.flush()
        assert (tmp_path / "file").read_bytes() == b"before"
    assert (tmp_path / "file").read_bytes() == b"after"


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_what_an_exception_closes_is_not_there(
    files: Callable[..., Any], tmp_path: Path, raised: type[BaseException]
) -> None:
    filesystem, inner = files(0)

    def begin() -> None:
        with filesystem.open_output_stream("file") as stream:
            stream.write(b"half")
            raise raised

    with pytest.raises(raised):
        begin()
    left = filesystem.open_output_stream("file")
    left.write(b"half")
    del left
    gc.collect()
    assert (os.listdir(tmp_path), inner.asked) == ([], {})
    try:
        raise raised
    except raised:  # a report of the error is written whole
        with filesystem.open_output_stream("file") as stream:
            stream.write(b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_a_server_that_is_away_is_asked_again_by_the_other_client_too(
    files: Callable[..., Any], waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem, inner = files(0)
    answers = [EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), OSError(errno.EREMOTEIO, "Internal"), None]

    def put(*_: Any, **__: Any) -> None:
        if (error := answers.pop(0)) is not None:
            raise error

    monkeypatch.setattr(inner, "pipe_file", put, raising=False)
    with filesystem.open_output_stream("file") as stream:
        stream.write(b"content")
    assert (answers, len(waits)) == ([], 2)


def test_folders_are_copied_there_and_back(files: Callable[..., Any], tmp_path: Path) -> None:
    """As Ray Train does, with pyarrow's own threads."""
    filesystem, inner = files(2)
    source, target = tmp_path / "source", tmp_path / "back"
    (source / "below").mkdir(parents=True)
    content = {"a": b"", "below/b": bytes(3_000_001)}
    for name, data in content.items():
        (source / name).write_bytes(data)
    fs.copy_files(str(source), "there", destination_filesystem=filesystem)
    fs.copy_files("there", str(target), source_filesystem=filesystem)
    assert {name: (target / name).read_bytes() for name in content} == content
    assert inner.asked["pipe_file"] > 2


def test_it_reaches_workers_as_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray pickles it and compares the result with the original."""
    local = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(retrying, "arrow_filesystem", lambda uri, storage, **_: (local, "runs"))
    filesystem, _ = retrying_filesystem("s3://runs", STORAGE)
    copied = pickle.loads(pickle.dumps(filesystem))  # noqa: S301
    assert copied == filesystem
    assert copied.handler.storage == filesystem.handler.storage
    elsewhere = fs.SubTreeFileSystem(str(tmp_path / "below"), fs.LocalFileSystem())
    monkeypatch.setattr(retrying, "arrow_filesystem", lambda uri, storage, **_: (elsewhere, "runs"))
    assert retrying_filesystem("s3://runs", STORAGE)[0] != filesystem
    assert filesystem != local
