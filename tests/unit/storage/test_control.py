"""Storage on the local disk; object storage is tested against a real server."""

import errno
import fcntl
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import pytest

from histill.config.common import Storage
from histill.errors import InputError, UnavailableError
from histill.storage import control
from histill.storage.filesystems import arrow_filesystem, storage_error, storage_errors
from histill.storage.uris import beside, folder_of, join, stem

pytestmark = pytest.mark.unit

STORAGE = Storage()


@pytest.mark.parametrize(
    ("index", "relative", "expected"),
    [
        ("s3://b/set/index.csv", "images/a.png", "s3://b/set/images/a.png"),
        ("/data/index.csv", "a.png", "/data/a.png"),
        ("index.csv", "a.png", "a.png"),
        ("/data/index.csv", "/other/a.png", "/other/a.png"),
        ("/data/index.csv", "s3://b/a.png", "s3://b/a.png"),
    ],
)
def test_paths_in_an_index_are_relative_to_it(index: str, relative: str, expected: str) -> None:
    assert beside(index, relative) == expected


def test_join_and_stem() -> None:
    assert join("s3://b/set/", "shards", "a.parquet") == "s3://b/set/shards/a.parquet"
    assert stem("s3://b/x/slide.one.svs") == "slide.one"


def test_the_folder_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    places = ("s3://b/reports/a.html", "s3://b/a.html", "/a.html", "a.html", "/data/a.html", "data/a.html")
    assert [folder_of(place) for place in places] == ["s3://b/reports", "s3://b", "/", "/", "/data", "/data"]


def test_bytes_come_back(tmp_path: Path) -> None:
    uri = str(tmp_path / "deep" / "er" / "file.bin")
    assert not control.exists(uri, STORAGE)
    control.write_bytes(uri, b"one", STORAGE)
    control.write_bytes(uri, b"two", STORAGE)
    assert control.exists(uri, STORAGE)
    assert control.read_bytes(uri, STORAGE) == b"two"
    assert os.listdir(tmp_path / "deep" / "er") == ["file.bin"]


def test_json_comes_back_and_is_stable(tmp_path: Path) -> None:
    one, two = str(tmp_path / "1.json"), str(tmp_path / "2.json")
    control.write_json(one, {"b": 1, "a": [1, None]}, STORAGE)
    control.write_json(two, {"a": [1, None], "b": 1}, STORAGE)
    assert json.loads(Path(one).read_bytes()) == {"a": [1, None], "b": 1}
    assert Path(one).read_bytes() == Path(two).read_bytes()


def test_a_missing_file_stays_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        control.read_bytes(str(tmp_path / "none"), STORAGE)


def test_probe_leaves_nothing(tmp_path: Path) -> None:
    control.probe(str(tmp_path / "out" / "deep"), STORAGE)
    control.probe(str(tmp_path), STORAGE)
    assert os.listdir(tmp_path) == []


def test_probe_names_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/out"):
        control.probe(str(tmp_path / "file" / "out"), STORAGE)


WRITERS = (
    lambda uri: control.probe(uri, STORAGE),
    lambda uri: control.write_bytes(f"{uri}/file", b"", STORAGE),
    lambda uri: control.create_bytes(f"{uri}/file", b"", STORAGE),
)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("place", ["/proc/histill", "/proc/histill/out", "/dev/null/out"])
def test_a_place_where_no_folder_can_be_made_is_said(write: Callable[[str], object], place: str) -> None:
    with pytest.raises(InputError, match=rf"^{place}.* cannot be used \(.*\); .*\.$") as raised:
        write(place)
    assert "Errno" not in str(raised.value)


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (errno.EACCES, r"\(permission denied\); give this user access"),
        (errno.EROFS, r"\(read-only file system\); name a place that can be written"),
        (errno.ENOSPC, r"\(no space left on device\); make room there"),
        (errno.ENAMETOOLONG, r"\(file name too long\); choose a shorter name"),
        (errno.EIO, r"; check what it names, or name another place"),
    ],
)
def test_what_the_system_says_of_a_write_is_a_sentence(tmp_path: Path, number: int, step: str) -> None:
    error = OSError(number, os.strerror(number))
    with patch("os.makedirs", side_effect=error), pytest.raises(InputError, match=step):
        control.write_bytes(str(tmp_path / "out" / "file"), b"", STORAGE)


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert arrow_filesystem("a/b", STORAGE)[1] == str(tmp_path / "a" / "b")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("AWS Error SIGNATURE_DOES_NOT_MATCH during PutObject", "refused the secret key"),
        ("An error occurred (InvalidAccessKeyId) when calling PutObject", "does not know the access key"),
        ("AWS Error ACCESS_DENIED during HeadObject", "denied access"),
        ("AWS Error NETWORK_CONNECTION: curlCode: 7", "cannot be reached"),
        ("AWS Error NO_SUCH_BUCKET during PutObject", "does not exist"),
    ],
)
def test_errors_of_object_storage_are_sentences(raised: str, said: str) -> None:
    storage = Storage(endpoint="http://127.0.0.1:1")
    message = str(storage_error("s3://bucket/key", storage, OSError(raised)))
    assert said in message
    assert "s3://bucket/key" in message
    assert "http://127.0.0.1:1" in message


@pytest.mark.parametrize(
    ("raised", "away"),
    [
        (OSError("AWS Error NETWORK_CONNECTION: curlCode: 7, Couldn't connect to server"), True),
        (OSError("AWS Error NETWORK_CONNECTION: curlCode: 28, Timeout was reached"), True),
        (OSError('Could not connect to the endpoint URL: "http://127.0.0.1:1/bucket"'), True),
        (ConnectionResetError("Connection reset by peer"), True),
        (OSError("AWS Error SIGNATURE_DOES_NOT_MATCH during PutObject"), False),
        (OSError("An error occurred (InvalidAccessKeyId) when calling PutObject"), False),
        (OSError("AWS Error ACCESS_DENIED during HeadObject"), False),
        (OSError("AWS Error NO_SUCH_BUCKET during PutObject"), False),
        (OSError("Unable to locate credentials"), False),
        (OSError("something else"), False),
    ],
    ids=str,
)
def test_a_server_that_is_away_is_told_from_one_that_refuses(raised: OSError, away: bool) -> None:
    """The first may be transient, so workers are replaced; the second ends the run."""
    error = storage_error("s3://bucket/key", Storage(endpoint="http://127.0.0.1:1"), raised)
    assert isinstance(error, InputError)
    assert type(error) is (UnavailableError if away else InputError)


def test_nothing_listens_there() -> None:
    """Errors that the two clients really raise."""
    storage = Storage(endpoint="http://127.0.0.1:1", attempts=1, connect_timeout_s=1, request_timeout_s=1)
    environment = {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with patch.dict(os.environ, environment):
        with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:1 cannot be reached"):
            control.read_bytes("s3://bucket/key", storage)
        filesystem, path = arrow_filesystem("s3://bucket/key", storage)
        with pytest.raises(UnavailableError), storage_errors("s3://bucket/key", storage):
            filesystem.open_input_file(path)


def test_a_local_file_is_never_away() -> None:
    assert type(storage_error("/data/file", STORAGE, OSError("Connection timed out"))) is InputError


def test_a_file_is_made_once_and_by_one(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "claim.json")
    assert control.create_bytes(uri, b"mine", STORAGE)
    assert control.create_bytes(uri, b"mine", STORAGE)  # as after a lost reply
    assert not control.create_bytes(uri, b"yours", STORAGE)
    assert control.read_bytes(uri, STORAGE) == b"mine"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: control.create_bytes(f"{uri}.{n // 8}", b"%d" % n, STORAGE), range(80)))
    assert [sum(made[start : start + 8]) for start in range(0, 80, 8)] == [1] * 10
    assert not list(tmp_path.rglob("*.part"))


def test_without_hard_links_one_makes_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    uri = str(tmp_path / "claim.json")
    assert control.create_bytes(uri, b"mine", STORAGE)
    assert not control.create_bytes(uri, b"yours", STORAGE)
    assert os.listdir(tmp_path) == ["claim.json"]


def test_a_file_is_replaced_by_one_of_those_who_have_read_it(tmp_path: Path) -> None:
    uri = str(tmp_path / "state.json")
    assert not control.swap_bytes(uri, b"", b"new", STORAGE)
    control.write_bytes(uri, b"0", STORAGE)
    for number in range(10):
        before, after = b"%d" % number, b"%d" % (number + 1)
        with ThreadPoolExecutor(4) as pool:
            said = list(pool.map(lambda who, b=before: control.swap_bytes(uri, b, b"by %d" % who, STORAGE), range(4)))
        assert sum(said) == 1
        assert control.read_bytes(uri, STORAGE) == b"by %d" % said.index(True)
        control.write_bytes(uri, after, STORAGE)
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, OSError, SystemExit])
def test_a_write_that_ends_in_the_middle_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    uri = str(tmp_path / "file")
    control.write_bytes(uri, b"old", STORAGE)

    def end(_: int) -> None:
        raise raised

    monkeypatch.setattr(os, "fsync", end)
    with pytest.raises((raised, InputError)):
        control.write_bytes(uri, b"new", STORAGE)
    with pytest.raises((raised, InputError)):
        control.create_bytes(str(tmp_path / "other"), b"new", STORAGE)
    assert os.listdir(tmp_path) == ["file"]
    assert control.read_bytes(uri, STORAGE) == b"old"


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    left, written, others = (tmp_path / f"{name}.part" for name in ("a[1].00000001", "a[1].00000002", "b.00000001"))
    for part in (left, written, others):
        part.write_bytes(b"half")
    with written.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        control.write_bytes(str(tmp_path / "a[1]"), b"whole", STORAGE)
        assert sorted(os.listdir(tmp_path)) == ["a[1]", written.name, others.name]
    control.write_bytes(str(tmp_path / "a[1]"), b"whole", STORAGE)
    assert sorted(os.listdir(tmp_path)) == ["a[1]", others.name]


def test_no_write_lists_the_folder(tmp_path: Path) -> None:
    """Otherwise the cost of a write would grow with the number of files next to it."""
    with patch("os.scandir", side_effect=AssertionError), patch("os.listdir", side_effect=AssertionError):
        control.write_bytes(str(tmp_path / "a"), b"1", STORAGE)
        assert control.create_bytes(str(tmp_path / "b"), b"1", STORAGE)
        assert control.swap_bytes(str(tmp_path / "a"), b"1", b"2", STORAGE)


def test_what_many_killed_writers_of_one_file_have_left_goes_at_the_next_write(tmp_path: Path) -> None:
    uri = str(tmp_path / "file")
    for number in range(8):
        (tmp_path / f"file.{number:08x}.part").touch()
    os.link(tmp_path / "file.00000000.part", uri)  # one was killed between making the file and removing its part
    assert not control.create_bytes(uri, b"new", STORAGE)
    control.write_bytes(uri, b"new", STORAGE)
    assert os.listdir(tmp_path) == ["file"]
    assert control.read_bytes(uri, STORAGE) == b"new"


def test_more_writers_of_one_file_than_names_that_are_swept(tmp_path: Path) -> None:
    uri = str(tmp_path / "file")
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(lambda number: control.write_bytes(uri, b"%d" % number * 9, STORAGE), range(240)))
    found = control.read_bytes(uri, STORAGE)
    assert found in {b"%d" % number * 9 for number in range(240)}
    assert os.listdir(tmp_path) == ["file"]


def test_a_writer_killed_after_it_has_created_a_file_leaves_no_part(tmp_path: Path) -> None:
    """For a moment file and part are the same inode, and the next writer finds the file."""
    path = tmp_path / "ingest.json"
    path.write_bytes(b"mine")
    os.link(path, f"{path}.00000000.part")
    assert control.create_bytes(str(path), b"mine", STORAGE)
    assert [each.name for each in tmp_path.iterdir()] == ["ingest.json"]
