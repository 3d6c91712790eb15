"""Handle Ctrl-C and SIGTERM: report at once and shut down in order, or end immediately on the second signal.

A thread can end the process in the same way with `end_for`.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_said_to_stay = ["what is written stays"]  # the innermost block's entry is last
_heeding: list[int] = []  # file descriptor for the message, while signals are handled
_instead: list[Callable[[int, Any], None]] = []
_received: list[int] = []
_reasons: list[Exception] = []  # why the process ends, if not because of a signal from outside


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end; `status` is the corresponding exit status, 130 for Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Raise `Interrupted` in the main thread on the first signal; end the process on the second.

    Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = [signal.getsignal(number) for number in _SIGNALS]
    stderr = os.dup(2)  # a duplicate, since stderr is silenced while Ray starts
    for number in _SIGNALS:
        signal.signal(number, _answer)
    _heeding.append(stderr)
    try:
        yield
    except (KeyboardInterrupt, Exception):
        raise_if_interrupted()  # a library may have replaced it by its own exception, or failed because of it
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
    """Reinstall the handlers of `handle_signals` after a library has replaced them.

    `instead` is called in place of raising, for libraries with a shutdown of their own; the caller follows it with
    `raise_if_interrupted`.
    """
    if _heeding and threading.current_thread() is threading.main_thread():
        _instead[:] = [] if instead is None else [instead]
        for number in _SIGNALS:
            signal.signal(number, _answer)


@contextlib.contextmanager
def keep_handlers() -> Iterator[None]:
    """Restore, after the block, signal handlers that a library has replaced."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGUSR1)}
    try:
        yield
    finally:
        _instead.clear()
        for number, handler in earlier.items():
            if handler is not None:  # None: not installed from Python
                signal.signal(number, handler)


def raise_if_interrupted() -> None:
    """Raise `Interrupted` without context if a signal has arrived, or the reason given to `end_for`."""
    if _reasons:
        raise _reasons[0] from None
    if _received:
        raise Interrupted(_received[0]) from None


def end_for(reason: Exception) -> None:
    """Interrupt the main thread as Ctrl-C does, from any thread, so that `handle_signals` raises `reason`."""
    if _heeding and not _received:
        _reasons.append(reason)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # also wakes it from a wait


def is_interrupted() -> bool:
    """Whether a signal has arrived and the process is ending."""
    return bool(_received)


@contextlib.contextmanager
def keep_on_interrupt(what: str) -> Iterator[None]:
    """Within the block, say `what` in the message of an interrupted process, as in "... stays"."""
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
    on_a_line = os.isatty(_heeding[0])  # perhaps behind a progress bar
    os.write(_heeding[0], f"\n{line}".encode() if on_a_line else line.encode())
