"""Claim a run folder, so that only one of several jobs with the same run name works on it; the others are refused.

The claim is a small file in the folder, renewed by its job. The claim of a dead job is taken over: immediately on the
same machine, where the process can be checked, and elsewhere once it has not been renewed for `LEASE_S`. The age is
observed rather than computed from timestamps, because clocks differ. The takeover is a conditional write, so only one
of two contenders wins.
"""

import contextlib
import os
import platform
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from histill.cluster.signals import end_for
from histill.config.common import Storage
from histill.errors import HistillError, InputError
from histill.storage.control import create_bytes, read_bytes, remove, swap_bytes
from histill.storage.folders import find_nearest_folder, remove_empty_folders
from histill.storage.records import Record, parse_record, record_bytes
from histill.storage.uris import is_remote, join, local_path

CLAIM_NAME = "claim.json"
LEASE_S, RENEW_S, _LOOK_S = 60.0, 10.0, 2.0
_PROC = Path("/proc")
_lost: set[str] = set()  # folders
Place = tuple[str, str, int, str]  # host name, boot and PID namespace, process id, process start time


class ClaimRecord(Record):
    """The process that holds a folder."""

    noun: ClassVar[str] = "a claim"
    remedy: ClassVar[str] = "remove it once nobody is at work there"

    token: str
    place: Place
    renewed: int


@contextlib.contextmanager
def hold_claim(folder: str, storage: Storage) -> Iterator[None]:
    """Hold the claim of `folder` for the duration of the block; call it from the main thread.

    A local folder to which nothing was written is removed after the block.

    Raises InputError when another job holds the claim, and HistillError inside the block when another job has taken it
    over because this one did not renew it in time.
    """
    uri, token, place = join(folder, CLAIM_NAME), uuid.uuid4().hex, describe_process()
    held = [_encode(token, place, 0)]
    above = None if is_remote(folder) else find_nearest_folder(local_path(folder))
    _take(uri, folder, held[0], place, storage)
    _lost.discard(folder)
    done = threading.Event()
    reason = HistillError(
        f"another job has taken over {folder}, since this one did not renew its claim for {LEASE_S:g} s; let the "
        "other one finish.",
        code="run-in-use",
    )

    def renew() -> None:
        number = 0
        while not done.wait(RENEW_S):
            number += 1
            renewed = _encode(token, place, number)
            with contextlib.suppress(HistillError, OSError):  # an unavailable server is retried at the next renewal
                if swap_bytes(uri, held[0], renewed, storage):
                    held[0] = renewed
                elif (found := _ours(uri, token, storage)) is None:
                    _lost.add(folder)
                    end_for(reason)
                    return
                else:  # the earlier write succeeded although its reply was lost
                    held[0] = found

    thread = threading.Thread(target=renew, name="claim", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if not is_lost(folder):
            raise
        raise reason from None
    finally:
        done.set()
        thread.join(timeout=1.0)
        with contextlib.suppress(HistillError, OSError):
            if _ours(uri, token, storage) is not None:
                remove(uri, storage)
                if above is not None:
                    remove_empty_folders(local_path(folder), below=above)


def is_lost(folder: str) -> bool:
    """Whether another job has taken over the claim of `folder` from this process."""
    return folder in _lost


def describe_process() -> Place:
    """Identify this process uniquely across machines, containers, reboots and reused process ids."""
    return (socket.gethostname(), _machine(), os.getpid(), _begun(os.getpid()))


def _take(uri: str, folder: str, mine: bytes, place: Place, storage: Storage) -> None:
    found = b""
    while not create_bytes(uri, mine, storage):
        try:
            found = read_bytes(uri, storage)
        except FileNotFoundError:  # released meanwhile
            continue
        holder = _holder(found)
        if holder is not None and holder[:2] == place[:2]:
            if _begun(holder[2]) == holder[3]:
                raise _refusal(folder, holder)
        else:
            _watch(uri, folder, found, holder, storage)
        if swap_bytes(uri, found, mine, storage):
            return


def _watch(uri: str, folder: str, found: bytes, holder: Place | None, storage: Storage) -> None:
    """Return once the claim is gone or has stayed at `found` for `LEASE_S`; raise when it is renewed."""
    host = holder[0] if holder else "an unknown machine"
    print(
        f"{folder} is claimed by a job on {host}; waiting up to {LEASE_S:g} s to see whether that is alive.",
        file=sys.stderr,
        flush=True,
    )
    until = time.monotonic() + LEASE_S
    while time.monotonic() < until:
        time.sleep(_LOOK_S)
        try:
            now = read_bytes(uri, storage)
        except FileNotFoundError:
            return
        if now != found:
            raise _refusal(folder, _holder(now) or holder)


def _refusal(folder: str, holder: Place | None) -> InputError:
    who = f"process {holder[2]} on {holder[0]}" if holder else "on another machine"
    return InputError(
        f"another job ({who}) is at work on {folder}; wait until it has ended, or choose another name.",
        code="run-in-use",
    )


def _ours(uri: str, token: str, storage: Storage) -> bytes | None:
    """The content of this job's claim, or None when it is gone or belongs to another job."""
    try:
        found = read_bytes(uri, storage)
    except FileNotFoundError:
        return None
    return found if f'"{token}"'.encode() in found else None


def _encode(token: str, place: Place, renewed: int) -> bytes:
    return record_bytes(ClaimRecord(token=token, place=place, renewed=renewed))


def _holder(content: bytes) -> Place | None:
    try:
        return parse_record(ClaimRecord, content, CLAIM_NAME).place
    except InputError:
        return None


def _machine() -> str:
    """Identify the machine's current boot and the container's PID namespace."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:  # not Linux
        return platform.node()


def _begun(process: int) -> str:
    """Start time of `process` in clock ticks since boot; "" if it is not running."""
    if _PROC.is_dir():
        try:
            state, *others = (_PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
            return "" if state in "ZX" else others[18]
        except OSError:
            return ""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
