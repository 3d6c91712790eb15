"""Run a server as a child process and end it together with everything it started.

A server's processes are identified by two marks: the session that the server leads, and a tag in their environment.
Both are needed: drivers of submitted Ray jobs leave the session, and Ray's workers overwrite their environment with a
process title. The processes are found in /proc; without it (macOS), the process group is ended.

Run as a program (`python -m histill.local.processes SESSION TAG PATH...`) this module guards one server: it reads from
a pipe that its parent holds open and, when the parent is gone, even by SIGKILL, ends the server and removes its scratch
paths.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from histill.errors import HistillError

TAG_VARIABLE = "HISTILL_LOCAL_SERVER"
_PROC = Path("/proc")
_POLL_S = 0.1


@contextmanager
def run_server(
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str],
    cwd: Path | None = None,
    scratch: Sequence[Path] = (),
    grace_s: float = 15.0,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `command` in a session of its own until the block is left.

    Args:
        command: program and arguments.
        log: file that stdout and stderr are appended to.
        env: the whole environment of the process.
        cwd: working directory of the process.
        scratch: temporary files and folders of the process; removed at the end.
        grace_s: seconds between SIGTERM and SIGKILL at the end.
    """
    tag = uuid.uuid4().hex
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**env, TAG_VARIABLE: tag},
            start_new_session=True,
        )
        try:
            guard = subprocess.Popen(
                [sys.executable, "-m", "histill.local.processes", str(process.pid), tag, *map(str, scratch)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except BaseException:
            end(process.pid, tag, grace_s=0.0, leader=process)
            raise
    try:
        yield process
    finally:
        end(process.pid, tag, grace_s=grace_s, leader=process)
        guard.kill()
        guard.communicate()
        _remove(scratch)


def wait_until_ready(
    process: "subprocess.Popen[bytes]", name: str, log: Path, ready: Callable[[], bool], timeout_s: float
) -> None:
    """Wait until `ready()` is true.

    Raises:
        HistillError: the process ended or the timeout expired; the message has the log's path and last line.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        if process.poll() is not None:
            what = f"ended with status {process.returncode} before it answered"
        elif time.monotonic() > deadline:
            what = f"did not answer within {timeout_s:.0f} s"
        else:
            time.sleep(_POLL_S)
            continue
        raise HistillError(f"{name} {what}: its log {log} ends with {_last_line(log)!r}", code="demo-failed")


def end(session: int, tag: str, *, grace_s: float, leader: "subprocess.Popen[bytes] | None" = None) -> None:
    """End the processes of a server: SIGTERM to its leader, then to the others, then SIGKILL to survivors.

    The leader goes first, so that a server that ends its own children (Ray) does not report them as crashed.
    """
    for step, patience_s in ((_end_leader, grace_s), (_end_rest, grace_s), (_kill, 5.0)):
        step(session, tag)
        deadline = time.monotonic() + patience_s
        while True:
            if leader is not None:
                leader.poll()  # reaps it; a zombie would count as alive
            alive = members(session, tag)
            if not alive or (step is _end_leader and session not in alive):
                break
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        if not alive:
            break
    if leader is not None:
        leader.wait()


def members(session: int, tag: str) -> list[int]:
    """Pids of the living processes that are in `session` or carry `tag` in their environment."""
    if not _PROC.is_dir():
        return [session] if _group_exists(session) else []
    pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if pid != os.getpid() and _belongs(pid, session, tag)]


def _belongs(pid: int, session: int, tag: str) -> bool:
    try:
        # state and session follow the program's name, which is in parentheses and may contain spaces
        state, _, _, its_session = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[:4]
        if state in "ZX":
            return False
        if int(its_session) == session:
            return True
        return f"{TAG_VARIABLE}={tag}".encode() in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except (OSError, ValueError):  # ended meanwhile, or another user's process
        return False


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _end_leader(session: int, tag: str) -> None:
    if session in members(session, tag):
        _signal(session, signal.SIGTERM)


def _end_rest(session: int, tag: str) -> None:
    _signal_all(session, tag, signal.SIGTERM)


def _kill(session: int, tag: str) -> None:
    _signal_all(session, tag, signal.SIGKILL)


def _signal_all(session: int, tag: str, number: signal.Signals) -> None:
    if not _PROC.is_dir():
        with suppress(ProcessLookupError):
            os.killpg(session, number)
        return
    for pid in members(session, tag):
        _signal(pid, number)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"


def _remove(scratch: Sequence[Path]) -> None:
    for path in scratch:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _guard(session: int, tag: str, scratch: Sequence[Path]) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end(session, tag, grace_s=10.0)
    _remove(scratch)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), sys.argv[2], [Path(path) for path in sys.argv[3:]])
