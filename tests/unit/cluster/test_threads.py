"""Threads that share out items: in order, not too far ahead, and none is left running when the caller leaves."""

import threading
from contextlib import closing
from contextvars import ContextVar

import pytest

from histill.cluster.threads import AHEAD, map_threads

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("in_order", [True, False])
def test_every_item_once(threads: int, in_order: bool) -> None:
    found = list(map_threads(lambda item: item * item, range(50), threads, in_order=in_order))
    assert (found if in_order else sorted(found)) == [item * item for item in range(50)]
    assert list(map_threads(str, [], threads)) == []


def test_one_thread_is_the_callers() -> None:
    assert list(map_threads(lambda _: threading.current_thread(), [0, 1], 1)) == [threading.current_thread()] * 2


def test_results_that_nobody_takes_are_not_made() -> None:
    begun: list[int] = []
    with closing(map_threads(begun.append, range(1000), 2)) as results:
        next(results)
    assert len(begun) <= 2 * AHEAD + 1


def test_an_error_ends_it_and_the_names_of_the_caller_hold() -> None:
    job: ContextVar[str] = ContextVar("job")
    job.set("ingest")

    def work(item: int) -> str:
        if item == 3:
            raise ValueError(f"item {item}")
        return job.get()

    results = map_threads(work, range(10), 2)
    assert [next(results) for _ in range(3)] == ["ingest"] * 3
    with pytest.raises(ValueError, match="item 3"):
        next(results)


def test_threads_within_threads_end_when_the_caller_leaves() -> None:
    """A slide takes minutes; what stops a job must not wait for it."""
    begun, leave = threading.Event(), threading.Event()
    inner: list[int] = []

    def wait_once(item: int) -> int:
        inner.append(item)
        if item == 10:
            begun.set()
            assert leave.wait(30)
        return item

    def work(item: int) -> int:
        return item if item == 0 else sum(map_threads(wait_once, range(100_000), 2))

    with closing(map_threads(work, [0, 1], 2)) as results:
        assert next(results) == 0
        assert begun.wait(30)
        threading.Timer(0.1, leave.set).start()
    assert len(inner) < 100_000
