"""Handle Ctrl-C and SIGTERM: report at once and shut down in order, or end immediately when asked again.

A thread that finds that the process may not go on ends it in the same way, for a reason of its own.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_said_to_stay = ["what is written stays"]  # the innermost block's last
_heeding: list[int] = []  # where to say so, while signals are heeded
_instead: list[Callable[[int, Any], None]] = []
_received: list[int] = []
_reasons: list[Exception] = []  # why the process ends, where it is not for a signal from outside


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end; `status` is the exit status that says so, 130 for Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Raise `Interrupted` where the main thread is when the first signal comes; end the process at the second.

    In another thread than the main one it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = [signal.getsignal(number) for number in _SIGNALS]
    stderr = os.dup(2)  # Ray's start is silenced
    for number in _SIGNALS:
        signal.signal(number, _answer)
    _heeding.append(stderr)
    try:
        yield
    except (KeyboardInterrupt, Exception):
        raise_if_interrupted()  # a library may raise one of its own in its place, or stumble over it
        raise
    finally:
        _heeding.clear()
        _instead.clear()
        _received.clear()
        _reasons.clear()
        for number, handler in zip(_SIGNALS, earlier, strict=True):
            signal.signal(number, handler)
        os.close(stderr)


def reinstall_handlers(instead: Callable[[int, Any], None] | None = None) -> None:
    """Put the handlers of `handle_signals` back in place, where a library has put in its own.

    With `instead` that is called in place of raising, where a library knows how to end; `raise_if_interrupted` follows.
    """
    if _heeding and threading.current_thread() is threading.main_thread():
        _instead[:] = [] if instead is None else [instead]
        for number in _SIGNALS:
            signal.signal(number, _answer)


@contextlib.contextmanager
def keep_handlers() -> Iterator[None]:
    """Put back, after the block, the handlers of signals in whose place a library has put its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGUSR1)}
    try:
        yield
    finally:
        _instead.clear()
        for number, handler in earlier.items():
            if handler is not None:  # one that was not put in by Python
                signal.signal(number, handler)


def raise_if_interrupted() -> None:
    """Raise `Interrupted`, without what is being handled, if a signal has come; or the reason given to `end_for`."""
    if _reasons:
        raise _reasons[0] from None
    if _received:
        raise Interrupted(_received[0]) from None


def end_for(reason: Exception) -> None:
    """From any thread: interrupt the main one as Ctrl-C does, such that `handle_signals` ends with `reason`."""
    if _heeding and not _received:
        _reasons.append(reason)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # which wakes it from a wait, too


def is_interrupted() -> bool:
    """Whether a signal has come, from which the process is now ending."""
    return bool(_received)


@contextlib.contextmanager
def keep_on_interrupt(what: str) -> Iterator[None]:
    """While in the block, the line of an interrupted process says that `what` stays."""
    _said_to_stay.append(what)
    try:
        yield
    finally:
        _said_to_stay.pop()


def _answer(number: int, frame: Any) -> None:
    if _received:
        os._exit(128 + number)
    _received.append(number)
    if not _reasons:
        _say_so(number)
    if _instead:
        _instead[0](number, frame)
    else:
        raise Interrupted(number)


def _say_so(number: int) -> None:
    again = "Ctrl-C" if number == signal.SIGINT else "the signal"
    line = f"stopping; {_said_to_stay[-1]}, and the same command resumes from it ({again} once more ends it at once).\n"
    on_a_line = os.isatty(_heeding[0])  # of the progress, perhaps
    os.write(_heeding[0], f"\n{line}".encode() if on_a_line else line.encode())
