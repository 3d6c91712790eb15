"""Second tries for requests to object storage.

Measured against broken replies with pyarrow 25: with `AwsStandardS3RetryStrategy(max_attempts=n)` the SDK itself
repeats a request after a 503, a reset, a stall and a body shorter than its Content-Length: n tries in all, with waits
in between that come to about 5 seconds for n = 4. What it lets through is a plain OSError whose text alone says why:

    503           AWS Error SLOW_DOWN (GET); AWS Error UNKNOWN (HTTP status 503) (HEAD)
    reset         AWS Error NETWORK_CONNECTION ... curlCode: 56
    stall         AWS Error NETWORK_CONNECTION ... curlCode: 28, up to 6 s after `request_timeout` of silence
    short body    AWS Error NETWORK_CONNECTION ... curlCode: 18; it is never taken for the end of the object

Two things make tries above the SDK's necessary. Each client has a budget for retries, which 100 that did not help use
up; from then on it hands every error on at once. And its few seconds of waiting are less than a server's restart takes.
The two multiply: a request that never succeeds is made `attempts` squared times.
"""

import errno
import logging
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from histill.config.common import Storage

T = TypeVar("T")

LONGEST_WAIT_S = 20.0

_logger = logging.getLogger(__name__)
_jitter = random.SystemRandom()  # training's own generators stay as they were
_PASSING = re.compile(
    r"AWS Error (?P<name>NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT"
    r")\b|(?P<status>HTTP status (?:408|429|5\d\d))\b"
)

_OF_S3FS = {errno.EBUSY: "SLOW_DOWN", errno.EREMOTEIO: "INTERNAL_FAILURE"}  # its words for them


def retried(action: Callable[[], T], storage: Storage, *, what: str) -> T:
    """`action()`, tried up to `storage.attempts` times while it fails in ways that pass.

    Between tries it waits for a random time below `storage.retry_base_s`, doubled with every try. A missing object or
    bucket, refused credentials and denied access are raised at once, as is every error that is not an OSError; so
    call it inside `storage_errors`, which would hide the original error from it.

    Args:
        action: reads or writes something whole; must be safe to repeat.
        what: what it is for, for the log.

    Raises:
        whatever the last try raised.
    """
    attempt = 1
    while True:
        try:
            return action()
        except OSError as error:
            reason = passing(error)
            if reason is None or attempt >= storage.attempts:
                raise
            wait_s = _jitter.uniform(0.0, min(LONGEST_WAIT_S, storage.retry_base_s * 2 ** (attempt - 1)))
            _logger.warning(
                "%s: %s at try %d of %d; next try in %.1f s", what, reason, attempt, storage.attempts, wait_s
            )
        time.sleep(wait_s)
        attempt += 1


def passing(error: OSError) -> str | None:
    """A word for why a second try may succeed, free of addresses and credentials; None when it would not."""
    if isinstance(error, ConnectionError | TimeoutError):
        return type(error).__name__
    if error.errno in _OF_S3FS:
        return _OF_S3FS[error.errno]
    found = _PASSING.search(str(error))
    return None if found is None else found["name"] or found["status"]
