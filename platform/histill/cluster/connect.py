"""Join a Ray cluster, or start one on this machine for as long as a job runs."""

import contextlib
import logging
import os
import re
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from histill.cluster.ray_logging import is_verbose, silence_ray_start
from histill.cluster.signals import reinstall_handlers
from histill.config.redact import print_trace, redact
from histill.errors import InputError, UnavailableError

OWN_TOKEN = "~/.ray/auth_token"  # where Ray keeps one
CONNECT_S = 5.0  # seconds to wait for the cluster's port to answer
LOCAL = "local"  # Ray's name for "start a cluster here"
_FOLDER = "HISTILL_FOLDER"  # in workers: where the job was started
_CHANGES_FOLDER = "RAY_CHDIR_TO_TRIAL_DIR"
_MAY_PASS = ("timed out", "Timed out", "TimeoutError", "Failed to connect", "UNAVAILABLE")
_BUSY: tuple[type[InputError], str] = (
    UnavailableError,
    "end other programs that use up its CPUs, memory or /dev/shm (`free -h`, `df -h /dev/shm /tmp`) and run the same "
    "command again, or join a cluster by RAY_ADDRESS",
)
_STARTS: tuple[tuple[tuple[str, ...], type[InputError], str], ...] = (
    (("No space left", "Errno 28"), InputError, "make room below $RAY_TMPDIR (or /tmp) and in /dev/shm"),
    (("AF_UNIX path",), InputError, "set RAY_TMPDIR to a folder with a shorter path"),
    (
        ("Permission denied", "No such file", "Not a directory", "Read-only"),
        InputError,
        "set RAY_TMPDIR to a folder that you may write to",
    ),
    (("ddress already in use", " port "), InputError, "end the other Ray on this machine, or join it by RAY_ADDRESS"),
    (
        ("oken", "TOKEN", "uthentic"),
        InputError,
        "unset RAY_AUTH_MODE, or set RAY_AUTH_TOKEN_PATH to a file that holds one",
    ),
)
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")  # in Ray's message about a mismatch: the cluster's, then its own


@contextlib.contextmanager
def connect_cluster(*, in_process: bool = False, hook: bool = True) -> Iterator[None]:
    """Connect to the cluster at $RAY_ADDRESS, or start Ray on this machine and stop it afterwards.

    With `in_process` nothing is connected: the job works in its own process.

    An existing connection is used and left open. With HISTILL_VERBOSE=1 the workers' output is shown. Without `hook`
    the workers do not run `prepare_worker`, and may run on nodes without histill.

    Raises InputError when the address does not answer, the token is missing or wrong, or the versions of Ray or Python
    differ.
    """
    if in_process or _is_connected():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or LOCAL
    if address == LOCAL:
        _prepare_own_cluster()
    else:
        _check_address(address)
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # jobs show progress of their own
    if not is_verbose():
        # The driver's C++ core prints advice about Ray Data's and Ray Train's own actors as errors.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    try:
        _init(address, hook)
        reinstall_handlers()  # Ray installs its own SIGTERM handler
        yield
    finally:
        ray.shutdown()


def has_cluster() -> bool:
    """Whether Ray is connected, or an environment variable says which one to join or start."""
    return bool(os.environ.get("RAY_ADDRESS")) or _is_connected()


def works_here(*, in_process: bool) -> bool:
    """Whether a job's work is done on this machine, which then sees the same local files."""
    return in_process or (os.environ.get("RAY_ADDRESS") or LOCAL) == LOCAL


def _is_connected() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _init(address: str, hook: bool) -> None:
    import ray

    try:
        with silence_ray_start():
            ray.init(
                address,
                # Without the dashboard, placement groups of trials that Tune stops early are never released.
                include_dashboard=True if address == LOCAL else None,
                log_to_driver=is_verbose(),
                logging_level=logging.INFO if is_verbose() else logging.ERROR,
                runtime_env=_worker_environment() if hook else None,
            )
    except Exception as error:  # Ray raises plain exceptions
        if is_verbose():
            print_trace(error)
        raise _start_error(address, error) from None


def _start_error(address: str, error: Exception) -> InputError:
    """Explain in one sentence why Ray failed to start or to join."""
    text = redact(str(error))
    if len(found := _VERSIONS.findall(text)) == 2:
        theirs, ours = (f"Ray {version}, Python {python}" for version, python in found)
        return InputError(
            f"Ray at {redact(address)} has other versions ({theirs}) than this process ({ours}); install the same ones "
            "here and there, or submit the job to the cluster with `ray job submit`.",
            code="ray-versions",
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = lines[0][:200].rstrip(". ") if lines else type(error).__name__
    away = any(sign in text for sign in _MAY_PASS)
    if address != LOCAL:
        return (UnavailableError if away else InputError)(
            f"Ray at {redact(address)} cannot be joined ({reason}); check RAY_ADDRESS, or unset it to start Ray here.",
            code="ray-unreachable",
        )
    if "startup" in text or "GCS" in text:
        reason = "it did not answer in time"
    kind, fix = next(((kind, fix) for signs, kind, fix in _STARTS if any(sign in text for sign in signs)), _BUSY)
    return kind(f"Ray cannot be started on this machine ({reason}); {fix}.", code="ray-not-started")


def _worker_environment() -> dict[str, Any]:
    """What Ray gives to workers. Those of Ray Train and Tune would each change to a folder of their own."""
    os.environ.setdefault(_CHANGES_FOLDER, "0")  # read by the process that starts Ray Train, too
    return {
        "worker_process_setup_hook": f"{__name__}.prepare_worker",
        "env_vars": {_FOLDER: os.getcwd(), _CHANGES_FOLDER: os.environ[_CHANGES_FOLDER]},
    }


def prepare_worker() -> None:
    """Set RAY_ADDRESS to the cluster, and work in the job's folder; Ray runs this in each new worker.

    Without the address drivers inside workers, such as Tune's trials, look for a cluster on the machine, find none or
    the wrong one, and leave the placement groups of stopped trials reserved. Without the folder, which a node may lack,
    relative paths would mean what they mean where Ray was started.
    """
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    with contextlib.suppress(OSError):
        os.chdir(os.environ[_FOLDER])


def _prepare_own_cluster() -> None:
    """Configure authentication of the new cluster, before Ray is imported and reads the environment.

    Ray would enable token authentication by itself and leave a world-readable token in the home folder. Unless the user
    has a token, the one made here exists only in the environment of this process and its children.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not given and not Path(OWN_TOKEN).expanduser().exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _check_address(address: str) -> None:
    """Raise InputError at once for an address or token on which Ray would retry for long and explain little."""
    shown = redact(address)
    if "://" in address:
        raise InputError(
            f"RAY_ADDRESS is {shown}; host:port of the cluster's GCS was expected, or submit this job "
            f"there with `ray job submit --address {shown}`.",
            code="ray-unreachable",
        )
    host, separator, port = address.rpartition(":")
    if address == "auto":
        return
    if not separator or not port.isdigit():
        raise InputError(
            f"RAY_ADDRESS is {shown!r}; host:port was expected, or nothing to start Ray here.", code="ray-unreachable"
        )
    refusal = _refusal(f"{host}:{port}", _token())
    if refusal == "UNAUTHENTICATED":
        raise InputError(
            f"Ray at {shown} refuses a missing or wrong token; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) to the token it was started with.",
            code="ray-token",
        )
    if refusal in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
        raise InputError(
            f"no Ray answers at RAY_ADDRESS={shown}; start it, correct the address (the port is the GCS's, "
            "6379 unless chosen otherwise, not the dashboard's), or unset it to start Ray here.",
            code="ray-unreachable",
        )


def asks_for_token(address: str) -> bool | None:
    """Whether the cluster whose GCS is at `address` (host:port) refuses clients without a token; None: unknown.

    Raises nothing. With RAY_USE_TLS=1 it is not asked: clients without a certificate are refused earlier.
    """
    refusal = _refusal(address, None)
    if refusal is None:
        return os.environ.get("RAY_USE_TLS") == "1"
    return True if refusal == "UNAUTHENTICATED" else None


def _refusal(target: str, token: str | None) -> str | None:
    """The gRPC error status of a harmless request to the GCS, or None if it succeeds."""
    import grpc

    if os.environ.get("RAY_USE_TLS") == "1":  # needs Ray's certificates; leave it to Ray
        return None
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(target) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            ask(b"", timeout=CONNECT_S, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
    return None


def _token() -> str | None:
    """The token that Ray would use, in Ray's order of precedence, if token authentication is on."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given.strip()
    try:
        return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or OWN_TOKEN).expanduser().read_text().strip()
    except (OSError, ValueError):
        return None
