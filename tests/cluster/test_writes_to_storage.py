"""Writes to a real S3 server: whole or absent, by one of several at once, under any name."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from histill.config.common import Storage
from histill.local.s3 import REGION, S3Server
from histill.storage import control, objects
from histill.storage.filesystems import control_filesystem

pytestmark = pytest.mark.cluster

FOLDER = "s3://tests/writes"


@pytest.fixture
def storage(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    return Storage(endpoint=s3.endpoint, region=REGION)


def test_an_object_is_made_once_and_by_one(storage: Storage) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: control.create_bytes(f"{FOLDER}/claim", b"%d" % n, storage), range(8)))
    assert sum(made) == 1
    mine = b"%d" % made.index(True)
    assert control.read_bytes(f"{FOLDER}/claim", storage) == mine
    assert control.create_bytes(f"{FOLDER}/claim", mine, storage)  # as when only the reply was lost
    assert not objects.create_object(*control_filesystem(f"{FOLDER}/claim", storage), b"late")


def test_an_object_is_replaced_by_one_of_those_who_have_read_it(storage: Storage) -> None:
    uri = f"{FOLDER}/state"
    assert not control.swap_bytes(uri, b"", b"new", storage)
    control.write_bytes(uri, b"before", storage)
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda n: control.swap_bytes(uri, b"before", b"by %d" % n, storage), range(8)))
    assert sum(said) == 1
    assert control.read_bytes(uri, storage) == b"by %d" % said.index(True)
