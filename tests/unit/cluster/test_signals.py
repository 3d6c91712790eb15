"""Ctrl-C and SIGTERM: one line at once, the status that says so, and an end that cannot be stopped the second time."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from histill.cluster.ray_logging import silence_ray_start
from histill.cluster.signals import (
    Interrupted,
    handle_signals,
    is_interrupted,
    keep_handlers,
    keep_on_interrupt,
    raise_if_interrupted,
    reinstall_handlers,
)

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Each test must leave what was there."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def status_of(work: Callable[[], None]) -> int:
    """The exit status to which the signals come that `work` gets."""
    with pytest.raises(Interrupted) as raised, handle_signals():
        work()
    return raised.value.status


@pytest.mark.parametrize(
    ("number", "status", "again"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "the signal")]
)
def test_a_signal_is_answered_by_one_line_at_once(
    number: signal.Signals, status: int, again: str, capfd: pytest.CaptureFixture[str]
) -> None:
    said = []

    def work() -> None:
        with keep_on_interrupt("the newest checkpoint stays"):
            try:
                signal.raise_signal(number)
            finally:
                said.append(capfd.readouterr().err)
                assert is_interrupted()

    assert status_of(work) == status
    assert said == [
        "stopping; the newest checkpoint stays, and the same command resumes from it "
        f"({again} once more ends it at once).\n"
    ]
    assert not is_interrupted()


def test_the_line_is_seen_while_stderr_is_silenced(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with silence_ray_start():
            signal.raise_signal(signal.SIGINT)

    assert status_of(work) == 130
    assert capfd.readouterr().err.startswith("stopping; what is written stays")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("an actor is gone")])
def test_a_library_that_raises_an_error_of_its_own_changes_no_status(error: BaseException) -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise error from None

    assert status_of(work) == 143


def test_an_interrupt_without_a_signal_stays_what_it_is() -> None:
    with pytest.raises(KeyboardInterrupt) as raised, handle_signals():
        raise KeyboardInterrupt
    assert not isinstance(raised.value, Interrupted)


def test_the_second_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)

    assert status_of(work) == 143
    assert ended == [130]


def test_a_librarys_own_handlers_are_replaced_again() -> None:
    """Ray puts in its own at SIGTERM."""

    def work() -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        reinstall_handlers()
        signal.raise_signal(signal.SIGTERM)

    assert status_of(work) == 143


def test_a_library_that_knows_how_to_end_is_asked_to(capfd: pytest.CaptureFixture[str]) -> None:
    asked: list[int] = []

    def tunes(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    def work() -> None:
        reinstall_handlers(tunes)
        signal.raise_signal(signal.SIGTERM)
        assert asked == [signal.SIGTERM]
        assert capfd.readouterr().err.startswith("stopping; ")
        raise_if_interrupted()

    assert status_of(work) == 143


def test_nothing_is_heeded_elsewhere_than_in_the_main_thread() -> None:
    done: list[bool] = []

    def work() -> None:
        with handle_signals():
            reinstall_handlers()
            raise_if_interrupted()
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    reinstall_handlers()  # out of the block it does nothing
    assert done == [True]


def test_the_handlers_of_a_library_go_with_it() -> None:
    taken: list[int] = []

    def work() -> None:
        with keep_handlers():
            signal.signal(signal.SIGINT, lambda number, _: taken.append(number))
            reinstall_handlers(signal.getsignal(signal.SIGINT))  # type: ignore[arg-type]
            signal.raise_signal(signal.SIGINT)
            assert taken == [signal.SIGINT]
        raise_if_interrupted()

    with keep_handlers():
        signal.signal(signal.SIGINT, lambda number, _: taken.append(number))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert status_of(work) == 130
