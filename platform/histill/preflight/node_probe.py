"""Gather a node's facts, on the node.

The functions are pickled by value, so that nodes without histill, or with another version, answer as well. They
therefore use the standard library only and import nothing from histill.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict


class Disk(TypedDict):
    """A folder's disk: free bytes for this user, total bytes, and whether the folder is writable."""

    folder: str
    free: int
    total: int
    writable: bool


class Token(TypedDict):
    """Where Ray's token is: a file and its mode, or both None when it is in the environment."""

    path: str | None
    mode: int | None


class Facts(TypedDict):
    """The facts of a node (or of the driver)."""

    versions: dict[str, str | None]  # None: not installed
    code: str | None  # digest of histill's source; None: not importable
    code_at: str  # its folder, or why it cannot be imported
    token: Token | None  # None: token auth is off, or Ray's token was not found
    disks: dict[str, Disk]  # by purpose of the folder
    shm_bytes: int | None  # None: no /dev/shm
    gpus_listed: int | None  # by nvidia-smi; None: not installed, or it failed
    gpus_usable: int | None  # by torch; None: not asked, or no answer


def gather_facts(packages: Sequence[str], folders: Mapping[str, str], gpus: float, patience_s: float) -> Facts:
    """Gather all facts.

    Args:
        packages: distributions to report versions of.
        folders: purpose -> folder whose disk to measure, in addition to the one for temporary files.
        gpus: number of GPUs that Ray offers here; torch is asked only if there are any.
        patience_s: timeout in seconds for each program that is run.
    """
    code, code_at = _code()
    return {
        "versions": {"Python": sys.version.split()[0], **{package: _version(package) for package in packages}},
        "code": code,
        "code_at": code_at,
        "token": _token(),
        "disks": {use: measure_disk(each) for use, each in {"temporary files": _temporary_folder(), **folders}.items()},
        "shm_bytes": _shm_bytes(),
        "gpus_listed": _gpus_listed(patience_s),
        "gpus_usable": _gpus_usable(patience_s) if gpus else None,
    }


def read_clock() -> float:
    """Seconds since 1970."""
    return time.time()


def digest_folder(folder: str) -> str:
    """A digest of the names and contents of the Python files below `folder`."""
    root = Path(folder)
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        for part in (path.relative_to(root).as_posix().encode(), path.read_bytes()):
            whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def measure_disk(folder: str) -> Disk:
    """Measure the disk of `folder`, or of its nearest existing parent."""
    there = Path(folder).absolute()
    while not os.path.exists(there):
        there = there.parent
    usage = shutil.disk_usage(there)
    writable = os.access(there, os.W_OK | os.X_OK)
    return {"folder": folder, "free": usage.free, "total": usage.total, "writable": writable}


def _temporary_folder() -> str:
    # not `tempfile`, which picks another folder when that disk is full
    return next((each for name in ("TMPDIR", "TEMP", "TMP") if (each := os.environ.get(name))), "/tmp")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _code() -> tuple[str | None, str]:
    try:
        package = importlib.import_module("histill")
        folder = os.path.dirname(str(package.__file__))
        return digest_folder(folder), folder
    except Exception as error:  # any failure to import is the answer
        return None, f"{type(error).__name__}: {error}"


def _token() -> Token | None:
    """Locate the token as Ray does."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if os.environ.get("RAY_AUTH_TOKEN"):
        return {"path": None, "mode": None}
    path = os.path.expanduser(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")
    with contextlib.suppress(OSError):
        return {"path": path, "mode": os.stat(path).st_mode & 0o777}
    return None


def _shm_bytes() -> int | None:
    with contextlib.suppress(OSError):
        return shutil.disk_usage("/dev/shm").total
    return None


def _gpus_listed(patience_s: float) -> int | None:
    listed = _said(["nvidia-smi", "-L"], patience_s)
    return None if listed is None else sum(line.startswith("GPU ") for line in listed.splitlines())


def _gpus_usable(patience_s: float) -> int | None:
    code = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    counted = _said([sys.executable, "-c", code], patience_s)
    return int(counted) if counted is not None and counted.strip().isdecimal() else None


def _said(command: Sequence[str], patience_s: float) -> str | None:
    """A program's stdout; None if it is missing, fails or times out."""
    # Ray hides the GPUs from tasks that reserve none.
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience_s, check=True, env=env)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
