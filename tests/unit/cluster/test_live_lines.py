"""Live lines, as they look on a terminal of 80 columns."""

import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
import textwrap
from dataclasses import dataclass

import pytest

pytestmark = pytest.mark.unit

COLUMNS = 80
_CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])")


@dataclass(frozen=True)
class Shown:
    """What a program leaves on the terminal: its lines, the cursor's column, the exit status and all that it wrote."""

    lines: list[str]
    column: int
    status: int
    written: str


def run_on_terminal(code: str, *, interrupt_at: str | None = None, term: str = "xterm") -> Shown:
    """Run `code` on a terminal, and press Ctrl-C there when a text like the pattern `interrupt_at` has been shown."""
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.execve(sys.executable, [sys.executable, "-c", textwrap.dedent(code)], os.environ | {"TERM": term})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    written = ""
    while True:
        try:
            written += os.read(terminal, 65536).decode()
        except OSError:  # the program has ended
            break
        if interrupt_at is not None and re.search(interrupt_at, written):
            os.write(terminal, b"\x03")
            interrupt_at = None
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    lines, column = draw(written)
    return Shown(lines, column, status, written)


def draw(written: str) -> tuple[list[str], int]:
    """The lines on the screen, and the cursor's column, once a terminal has got `written`."""
    lines, row, column = [""], 0, 0
    at = 0
    while at < len(written):
        lines += [""] * (row + 1 - len(lines))
        if control := _CONTROL.match(written, at):
            at = control.end()
            if control[2] == "A":
                row -= int(control[1] or 1)
            elif control[2] == "K":
                lines[row] = ""
            continue
        character, at = written[at], at + 1
        if character == "\r":
            column = 0
        elif character == "\n" or column == COLUMNS:
            row, column = row + 1, 0
        if character not in "\r\n":
            lines += [""] * (row + 1 - len(lines))
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
    return [*lines, *[""] * (row + 1 - len(lines))], column


def test_a_line_is_redrawn_and_what_is_printed_goes_above_it() -> None:
    shown = run_on_terminal("""
        import sys, time
        from histill.cluster.progress import track
        for number in track(range(4), 4, title="ingest", unit="slides"):
            print(f"slide {number}: no tissue", file=sys.stderr, flush=True)
            time.sleep(0.3)
        print("done")
    """)
    assert shown.status == 0
    *printed, line, done, rest = shown.lines
    assert printed == [f"slide {number}: no tissue" for number in range(4)]
    assert re.fullmatch(r"ingest 100% ━+ 4/4 slides  [\d.]+ slides/s  ETA 0:00", line)
    assert (done, rest, shown.column) == ("done", "", 0)
    assert "?25l" not in shown.written  # the cursor stays in sight


def test_lines_of_what_runs_at_once_are_below_each_other() -> None:
    shown = run_on_terminal("""
        import time
        from histill.cluster.progress import Progress
        first, second = Progress("first", 2, "tiles"), Progress("second", 2, "tiles")
        first.update(1, below=["  trial a: 1 of 3 epochs"])
        time.sleep(0.5)
        second.update(2)
        first.update(2)
        second.close()
        time.sleep(0.5)
        first.close()
    """)
    assert [line.split()[0] for line in shown.lines if line] == ["second", "first"]
    assert (shown.lines[-1], shown.column) == ("", 0)
    assert "trial a: 1 of 3 epochs" in shown.written


def test_an_error_follows_on_a_line_of_its_own() -> None:
    shown = run_on_terminal("""
        from histill.cluster.progress import track
        for number in track(range(4), 4, title="ingest", unit="slides"):
            if number == 2:
                raise SystemExit("error: no slide")
    """)
    assert shown.status == 1
    line, error, rest = shown.lines
    assert "2/4 slides" in line
    assert (error, rest) == ("error: no slide", "")


def test_ctrl_c_is_answered_on_lines_of_its_own() -> None:
    shown = run_on_terminal(
        """
        import time
        from histill.cluster.progress import track
        from histill.cluster.signals import Interrupted, handle_signals
        try:
            with handle_signals():
                for number in track(range(999), 999, title="ingest", unit="slides"):
                    time.sleep(0.1)
        except Interrupted as interruption:
            raise SystemExit(interruption.status)
    """,
        interrupt_at=r"[1-9]\d*/999",  # not one number: only a few of them are drawn
    )
    assert shown.status == 130
    assert any(line.startswith("stopping; what is written stays") for line in shown.lines)
    assert "ingest" in shown.lines[-2]
    assert (shown.lines[-1], shown.column) == ("", 0)


def test_a_terminal_that_cannot_redraw_gets_plain_lines() -> None:
    code = """
        from histill.cluster.progress import track
        list(track(range(4), 4, title="ingest", unit="slides"))
    """
    assert "\x1b" not in run_on_terminal(code, term="dumb").written
