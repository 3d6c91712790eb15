"""Worker failures: only errors that a retry cannot fix end the run."""

from typing import Any

import pytest

from histill.errors import HistillError, InputError, UnavailableError
from histill.train.ray.fail_fast import FailFast

pytestmark = pytest.mark.unit

CONTEXT: Any = None
BROKEN = RuntimeError("the network between workers broke")


@pytest.mark.parametrize(
    "error",
    [
        InputError("the bucket does not exist.", code="bucket-missing"),
        HistillError("the disk is full.", code="disk-full"),
    ],
)
def test_what_no_retry_can_mend_ends_the_run(error: Exception) -> None:
    """Whatever errors it causes in the other workers."""
    with pytest.raises(type(error)) as caught:
        FailFast().after_exception(CONTEXT, {0: BROKEN, 1: error})
    assert str(caught.value) == str(error)


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("the server cannot be reached.", code="storage-unreachable"),
        BROKEN,
        MemoryError("no memory is left"),
    ],
)
def test_what_may_pass_is_left_to_the_next_workers(error: Exception) -> None:
    FailFast().after_exception(CONTEXT, {0: error})
