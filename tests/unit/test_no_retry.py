"""What a worker's failure means for the run: only what no retry can mend ends it."""

from typing import Any

import pytest

from histill.errors import AwayError, HistillError, InputError
from histill.train.no_retry import NoRetry

pytestmark = pytest.mark.unit

CONTEXT: Any = None
BROKEN = RuntimeError("the network between workers broke")


@pytest.mark.parametrize("error", [InputError("the bucket does not exist."), HistillError("the disk is full.")])
def test_what_no_retry_can_mend_ends_the_run(error: Exception) -> None:
    """Whatever became of the other workers because of it."""
    with pytest.raises(type(error)) as caught:
        NoRetry().after_exception(CONTEXT, {0: BROKEN, 1: error})
    assert str(caught.value) == str(error)


@pytest.mark.parametrize(
    "error", [AwayError("the server cannot be reached."), BROKEN, MemoryError("no memory is left")]
)
def test_what_may_pass_is_left_to_the_next_workers(error: Exception) -> None:
    NoRetry().after_exception(CONTEXT, {0: error})
