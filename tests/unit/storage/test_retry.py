"""What is retried, how often, and what the log says about it. The error messages are those of pyarrow and s3fs."""

import errno
import logging
from collections.abc import Callable

import pytest

from histill.config.common import Storage
from histill.counts import take_counts
from histill.errors import InputError
from histill.storage import retry
from histill.storage.retry import with_retries

pytestmark = pytest.mark.unit

STORAGE = Storage(attempts=4, retry_base_s=0.5)
PASSING = [
    OSError("AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate."),
    OSError("When reading information for key 'a': AWS Error UNKNOWN (HTTP status 503) during HeadObject operation."),
    OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 56, Failure when receiving data"),
    OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout was reached"),
    OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 18, Transferred a partial file"),
    OSError("AWS Error INTERNAL_FAILURE during GetObject operation: We encountered an internal error."),
    OSError(errno.EBUSY, "Please reduce your request rate."),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    TimeoutError(),
]
LASTING = [
    FileNotFoundError(errno.ENOENT, "Path does not exist 'tests/missing'"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError("AWS Error NO_SUCH_KEY during GetObject operation: The specified key does not exist."),
    OSError("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation: The specified bucket does not exist"),
    OSError("When reading information for key 'a': AWS Error ACCESS_DENIED during HeadObject operation: No response."),
    OSError("AWS Error INVALID_ACCESS_KEY_ID during GetObject operation: The access key ID does not exist."),
    OSError("AWS Error SIGNATURE_DOES_NOT_MATCH during GetObject operation: The request signature does not match."),
    OSError("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body."),
    OSError(errno.ENOSPC, "No space left on device"),
    InputError("the bucket of s3://b/k does not exist; create it or correct the name.", code="bucket-missing"),
    ValueError("not an OSError"),
]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The recorded waits in seconds, without waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", seconds.append)
    return seconds


def failing(errors: list[Exception]) -> Callable[[], str]:
    left = iter(errors)

    def action() -> str:
        for error in left:
            raise error
        return "read"

    return action


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_what_passes_is_tried_again(error: OSError, waits: list[float]) -> None:
    take_counts()
    assert with_retries(failing([error, error]), STORAGE, uri="s3://b/shard") == "read"
    assert len(waits) == 2
    assert take_counts() == {"storage_retries": 2}


@pytest.mark.parametrize("error", LASTING, ids=str)
def test_what_lasts_is_raised_at_once(error: Exception, waits: list[float]) -> None:
    with pytest.raises(type(error)) as caught:
        with_retries(failing([error]), STORAGE, uri="s3://b/shard")
    assert caught.value is error
    assert waits == []


def test_the_tries_are_bounded(waits: list[float]) -> None:
    errors: list[Exception] = [TimeoutError(str(number)) for number in range(9)]
    with pytest.raises(TimeoutError, match="3"):
        with_retries(failing(errors), STORAGE, uri="s3://b/shard")
    assert len(waits) == 3


def test_the_waits_are_drawn_below_a_doubling_bound(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[tuple[float, float]] = []

    def upper(low: float, high: float) -> float:
        bounds.append((low, high))
        return high

    monkeypatch.setattr(retry._jitter, "uniform", upper)
    with_retries(failing([TimeoutError()] * 8), Storage(attempts=9, retry_base_s=0.5), uri="s3://b/shard")
    assert bounds == [(0.0, high) for high in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0)]
    assert waits == [high for _, high in bounds]


def test_the_log_names_what_and_which_try_and_no_more(waits: list[float], caplog: pytest.LogCaptureFixture) -> None:
    error = OSError("AWS Error SLOW_DOWN during GetObject operation: key=AKIA123 secret=abc")
    with caplog.at_level(logging.INFO, "histill"):
        with_retries(failing([error]), STORAGE, uri="s3://b/shards/0001.parquet")
    (record,) = caplog.records
    assert record.name.startswith("histill.")
    assert record.getMessage().startswith("s3://b/shards/0001.parquet: SLOW_DOWN at try 1 of 4; next try in ")
    assert "secret" not in record.getMessage()
