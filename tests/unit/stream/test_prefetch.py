"""Prefetching: in order, no further ahead than asked, and its thread ends when it is no longer needed."""

import threading
from collections.abc import Iterator

import pytest

from histill.errors import InputError
from histill.stream.prefetch import prefetch

pytestmark = pytest.mark.unit


def threads_ahead() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches-ahead"]


def join_all() -> None:
    for thread in threads_ahead():
        thread.join(timeout=10)
    assert not threads_ahead()


def test_ahead_keeps_order_and_ends_its_thread() -> None:
    assert list(prefetch(iter(range(50)))) == list(range(50))
    join_all()


def test_ahead_runs_ahead_but_no_further_than_asked() -> None:
    produced: list[int] = []
    full = threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            produced.append(number)
            if number == 3:  # one consumed, two waiting, one held by the producer
                full.set()
            yield number

    running = prefetch(items(), depth=2)
    assert next(running) == 0
    assert full.wait(10)
    assert len(produced) == 4
    running.close()  # type: ignore[attr-defined]
    join_all()
    assert len(produced) <= 5


@pytest.mark.parametrize("error", [InputError("shard a is gone", code="tiles-damaged"), KeyboardInterrupt()])
def test_ahead_hands_on_exceptions(error: BaseException) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise error

    running = prefetch(items())
    assert next(running) == 1
    with pytest.raises(type(error)) as caught:
        next(running)
    assert caught.value is error
    join_all()


def test_a_consumer_that_leaves_closes_what_it_consumed() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.set()

    running = prefetch(items())
    assert next(running) == 0
    running.close()  # type: ignore[attr-defined]
    join_all()
    assert closed.wait(10)


def test_nothing_is_produced_before_it_is_asked_for() -> None:
    running = prefetch(iter(range(3)))
    assert not threads_ahead()
    assert list(running) == [0, 1, 2]
    join_all()
