"""Storage on the local disk; object storage is tested against a real server."""

import os
from pathlib import Path
from unittest.mock import patch

import pytest

from histill.config.common import Storage
from histill.errors import AwayError, InputError
from histill.storage import control
from histill.storage.filesystems import arrow_filesystem, storage_error, storage_errors
from histill.storage.uris import beside, join, stem

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
    assert control.read_json(one, STORAGE) == {"a": [1, None], "b": 1}
    assert Path(one).read_bytes() == Path(two).read_bytes()


def test_broken_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_text('{"a": ')
    with pytest.raises(InputError, match=r"cut\.json is not valid JSON"):
        control.read_json(str(path), STORAGE)


def test_a_missing_file_stays_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        control.read_bytes(str(tmp_path / "none"), STORAGE)


def test_probe_leaves_nothing(tmp_path: Path) -> None:
    control.probe(str(tmp_path / "out"), STORAGE)
    assert os.listdir(tmp_path / "out") == []


def test_probe_names_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/out"):
        control.probe(str(tmp_path / "file" / "out"), STORAGE)


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
    """The first may pass by itself, so workers are replaced; the second ends the run."""
    error = storage_error("s3://bucket/key", Storage(endpoint="http://127.0.0.1:1"), raised)
    assert isinstance(error, InputError)
    assert type(error) is (AwayError if away else InputError)


def test_nothing_listens_there() -> None:
    """What the two clients really raise."""
    storage = Storage(endpoint="http://127.0.0.1:1", attempts=1, connect_timeout_s=1, request_timeout_s=1)
    environment = {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with patch.dict(os.environ, environment):
        with pytest.raises(AwayError, match=r"http://127\.0\.0\.1:1 cannot be reached"):
            control.read_bytes("s3://bucket/key", storage)
        filesystem, path = arrow_filesystem("s3://bucket/key", storage)
        with pytest.raises(AwayError), storage_errors("s3://bucket/key", storage):
            filesystem.open_input_file(path)


def test_a_local_file_is_never_away() -> None:
    assert type(storage_error("/data/file", STORAGE, OSError("Connection timed out"))) is InputError
