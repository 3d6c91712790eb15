"""Prefetching: in order, no further ahead than asked, and its thread ends when it is no longer needed."""

import subprocess
import sys
import threading
import time
from collections.abc import Generator

import pytest

from histill.errors import InputError
from histill.stream.prefetch import Prefetched

pytestmark = pytest.mark.unit


def threads_ahead() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches-ahead"]


def join_all() -> None:
    for thread in threads_ahead():
        thread.join(timeout=10)
    assert not threads_ahead()


def test_ahead_keeps_order_and_ends_its_thread() -> None:
    assert list(Prefetched(number for number in range(50))) == list(range(50))
    join_all()


def test_ahead_runs_ahead_but_no_further_than_asked() -> None:
    produced: list[int] = []
    full = threading.Event()

    def items() -> Generator[int, None, None]:
        for number in range(100):
            produced.append(number)
            if number == 3:  # one consumed, two waiting, one held by the producer
                full.set()
            yield number

    running = Prefetched(items(), depth=2)
    assert next(running) == 0
    assert full.wait(10)
    assert len(produced) == 4
    running.close()
    assert not threads_ahead()
    assert len(produced) == 4


@pytest.mark.parametrize("error", [InputError("shard a is gone", code="tiles-damaged"), KeyboardInterrupt()])
def test_ahead_hands_on_exceptions(error: BaseException) -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise error

    running = Prefetched(items())
    assert next(running) == 1
    with pytest.raises(type(error)) as caught:
        next(running)
    assert caught.value is error
    join_all()


def counting(closed: threading.Event) -> Generator[int, None, None]:
    try:
        yield from range(100)
    finally:
        closed.set()


def test_a_consumer_that_closes_waits_for_what_is_under_way() -> None:
    """Once it goes on, nothing decodes beside it."""
    begun, closed = threading.Event(), threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            yield 0
            begun.set()
            time.sleep(0.2)  # as long as a task that cannot be cancelled any more
        finally:
            closed.set()

    running = Prefetched(items())
    assert next(running) == 0
    assert begun.wait(10)
    running.close()
    assert closed.is_set()
    assert not threads_ahead()
    assert list(running) == []
    running.close()


def test_a_consumer_that_leaves_without_a_word_closes_what_it_consumed() -> None:
    closed = threading.Event()
    running = Prefetched(counting(closed))
    assert next(running) == 0
    del running
    join_all()
    assert closed.is_set()


def test_a_program_ends_with_a_stream_that_it_has_not_finished() -> None:
    program = (
        "import itertools\n"
        "from histill.stream.prefetch import Prefetched\n"
        "running = Prefetched(number for number in itertools.count())\n"
        "print(next(running))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_nothing_is_produced_before_it_is_asked_for() -> None:
    running = Prefetched(number for number in range(3))
    assert not threads_ahead()
    assert list(running) == [0, 1, 2]
    join_all()
