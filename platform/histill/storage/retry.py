"""Retry requests to object storage.

Retries on top of those of pyarrow's S3 client (see schemes/s3.py) are needed for two reasons. Each client has a retry
budget, which 100 unsuccessful retries use up; from then on it raises every error at once. And it waits for a few
seconds only, which is less than a server restart takes.
The two levels multiply: a request that never succeeds is made `attempts` squared times.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from histill.config.common import Storage
from histill.counts import count_event
from histill.storage.scheme import scheme_of

T = TypeVar("T")

LONGEST_WAIT_S = 20.0

_logger = logging.getLogger(__name__)
_jitter = random.SystemRandom()  # leaves training's own generators untouched


def with_retries(action: Callable[[], T], storage: Storage, *, uri: str) -> T:
    """Return `action()`, called up to `storage.attempts` times while it fails with transient errors.

    Between attempts it waits for a random time below `storage.retry_base_s`, doubled with every attempt. A missing
    object or bucket, refused credentials and denied access are raised at once, as is every error that is not an
    OSError; so call it inside `storage_errors`, which would hide the original error from it.

    Args:
        action: reads or writes something whole; must be idempotent.
        uri: what it reads or writes, for the log and since its scheme tells which errors are transient.

    Raises:
        the error of the last attempt.
    """
    attempt = 1
    while True:
        try:
            return action()
        except OSError as error:
            reason = scheme_of(uri).transient_reason(error)
            if reason is None or attempt >= storage.attempts:
                raise
            count_event("storage_retries")
            wait_s = _jitter.uniform(0.0, min(LONGEST_WAIT_S, storage.retry_base_s * 2 ** (attempt - 1)))
            _logger.warning(
                "%s: %s at try %d of %d; next try in %.1f s", uri, reason, attempt, storage.attempts, wait_s
            )
        time.sleep(wait_s)
        attempt += 1
