"""Reads through a proxy that breaks replies: the bytes are the same, and what a second try cannot mend is raised."""

import logging
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from pyarrow import fs

from histill.config.common import Storage
from histill.local.s3 import REGION, S3Server
from histill.storage import control
from histill.storage.filesystems import arrow_filesystem
from histill.storage.retry import with_retries
from testbed.fault_proxy import KINDS, Faults, Kind, fault_proxy

pytestmark = pytest.mark.cluster

OBJECTS = {f"s3://tests/faults/{number}": np.random.default_rng(number).bytes(200_000) for number in range(12)}


@pytest.fixture
def credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with its credentials in the environment and the objects written to it."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    for uri, body in OBJECTS.items():
        control.write_bytes(uri, body, storage(s3.endpoint))
    return s3


def storage(endpoint: str, attempts: int = 8) -> Storage:
    return Storage(endpoint=endpoint, region=REGION, request_timeout_s=1.0, attempts=attempts, retry_base_s=0.05)


def without_retries(endpoint: str) -> fs.S3FileSystem:
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        region=REGION,
        request_timeout=1.0,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )


def read(files: fs.FileSystem, uri: str) -> bytes:
    with files.open_input_file(uri.removeprefix("s3://")) as file:
        return bytes(file.read())


def counted(action: Callable[[], bytes]) -> tuple[Callable[[], bytes], list[float]]:
    """The action, and a list that grows by the time of each call."""
    calls: list[float] = []

    def call() -> bytes:
        calls.append(time.monotonic())
        return action()

    return call, calls


@pytest.mark.parametrize("kind", KINDS)
def test_our_tries_mend_every_fault(credentials: S3Server, kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    with fault_proxy(credentials.endpoint, Faults(rate=0.3, kinds=(kind,), stall_s=0.2, match="^GET")) as proxy:
        files = without_retries(proxy.endpoint)
        with caplog.at_level(logging.WARNING, "histill"):
            for uri, body in OBJECTS.items():
                got = with_retries(lambda uri=uri: read(files, uri), storage(proxy.endpoint), uri=uri)
                assert got == body
        assert proxy.counts[kind] >= 2
        assert len(caplog.records) == proxy.counts[kind]
        assert credentials.secret_key not in caplog.text


def test_the_sdks_tries_and_ours_together(credentials: S3Server) -> None:
    with fault_proxy(credentials.endpoint, Faults(rate=0.3, stall_s=0.2)) as proxy:
        where = storage(proxy.endpoint, attempts=5)
        for uri, body in OBJECTS.items():
            assert with_retries(lambda uri=uri: read(arrow_filesystem(uri, where)[0], uri), where, uri=uri) == body
        assert sum(proxy.counts[kind] for kind in KINDS) >= 3


def test_silence_ends_at_the_request_timeout(credentials: S3Server) -> None:
    uri, body = next(iter(OBJECTS.items()))
    with fault_proxy(credentials.endpoint, Faults(rate=1.0, kinds=("stall",), stall_s=600, match="^GET")) as proxy:
        files = without_retries(proxy.endpoint)
        action, calls = counted(lambda: read(files, uri))
        mended = threading.Timer(0.5, setattr, (proxy, "rate", 0.0))
        mended.start()
        assert with_retries(action, storage(proxy.endpoint), uri=uri) == body
        mended.join()
        assert len(calls) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_control_files_are_mended_by_s3fs(credentials: S3Server, kind: Kind) -> None:
    with fault_proxy(credentials.endpoint, Faults(rate=0.2, kinds=(kind,), stall_s=0.2)) as proxy:
        for uri, body in OBJECTS.items():
            assert control.read_bytes(uri, storage(proxy.endpoint)) == body
        assert proxy.counts[kind] >= 1


@pytest.mark.parametrize(
    ("uri", "variable", "said"),
    [
        ("s3://tests/faults/missing", None, "does not exist"),
        ("s3://no-such-bucket/a", None, "does not exist"),
        ("s3://tests/faults/0", "AWS_SECRET_ACCESS_KEY", "ACCESS_DENIED|SIGNATURE"),
        ("s3://tests/faults/0", "AWS_ACCESS_KEY_ID", "ACCESS_DENIED|INVALID_ACCESS_KEY"),
    ],
)
def test_what_a_second_try_cannot_mend_is_raised_at_once(
    credentials: S3Server, monkeypatch: pytest.MonkeyPatch, uri: str, variable: str | None, said: str
) -> None:
    if variable is not None:
        monkeypatch.setenv(variable, "x" * 20)
    with fault_proxy(credentials.endpoint, Faults(rate=0.0)) as proxy:
        where = storage(proxy.endpoint)
        action, calls = counted(lambda: read(arrow_filesystem(uri, where)[0], uri))
        with pytest.raises(OSError, match=said):
            with_retries(action, where, uri=uri)
        assert len(calls) == 1


def test_writes_and_listings_pass_through_the_proxy(credentials: S3Server) -> None:
    uri, body = "s3://tests/faults/written", np.random.default_rng(0).bytes(12_000_000)  # in several parts
    with fault_proxy(credentials.endpoint, Faults(rate=0.0)) as proxy:
        where = storage(proxy.endpoint)
        files, path = arrow_filesystem(uri, where)
        with files.open_output_stream(path) as stream:
            stream.write(body)
        assert read(files, uri) == body
        control.write_bytes(uri, body[::-1], where)
        assert control.read_bytes(uri, where) == body[::-1]
        listed = {f"s3://{found.path}" for found in files.get_file_info(fs.FileSelector("tests/faults"))}
        assert listed == {*OBJECTS, uri}
        files.delete_file(path)
