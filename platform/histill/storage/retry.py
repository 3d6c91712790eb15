"""Retry requests to object storage.

Two things make tries above those of pyarrow's S3 client necessary, of which schemes/s3.py tells. Each client has a
budget for retries, which 100 that did not help use up; from then on it hands every error on at once. And its few
seconds of waiting are less than a server's restart takes.
The two multiply: a request that never succeeds is made `attempts` squared times.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from histill.config.common import Storage
from histill.storage.scheme import scheme_of

T = TypeVar("T")

LONGEST_WAIT_S = 20.0

_logger = logging.getLogger(__name__)
_jitter = random.SystemRandom()  # training's own generators stay as they were


def with_retries(action: Callable[[], T], storage: Storage, *, uri: str) -> T:
    """`action()`, tried up to `storage.attempts` times while it fails in ways that pass.

    Between tries it waits for a random time below `storage.retry_base_s`, doubled with every try. A missing object or
    bucket, refused credentials and denied access are raised at once, as is every error that is not an OSError; so
    call it inside `storage_errors`, which would hide the original error from it.

    Args:
        action: reads or writes something whole; must be safe to repeat.
        uri: where it reads or writes: for the log, and its scheme tells which errors pass.

    Raises:
        whatever the last try raised.
    """
    attempt = 1
    while True:
        try:
            return action()
        except OSError as error:
            reason = scheme_of(uri).transient_reason(error)
            if reason is None or attempt >= storage.attempts:
                raise
            wait_s = _jitter.uniform(0.0, min(LONGEST_WAIT_S, storage.retry_base_s * 2 ** (attempt - 1)))
            _logger.warning(
                "%s: %s at try %d of %d; next try in %.1f s", uri, reason, attempt, storage.attempts, wait_s
            )
        time.sleep(wait_s)
        attempt += 1
