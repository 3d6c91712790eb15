"""Joining a Ray cluster, or starting one on this machine for as long as a job runs."""

import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from histill.errors import InputError

TOKEN_HINT = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) to the token it was started with"
)
CONNECT_S = 5.0  # seconds to wait for the cluster's port to answer
SETTINGS = b"\x04"  # type of an HTTP/2 frame
LOCAL = "local"  # Ray's own word for "start one here"


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Connect to the cluster at $RAY_ADDRESS, or start Ray on this machine and end it afterwards.

    A connection that is already open is used and left open. With HISTILL_VERBOSE=1 the workers' output is
    shown.

    Raises InputError when the address does not answer or the token is missing or wrong.
    """
    address = os.environ.get("RAY_ADDRESS") or LOCAL
    if address == LOCAL:
        _prepare_own_cluster()
    else:
        _check_address(address)
        if os.environ.get("HISTILL_VERBOSE") != "1":
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # else a warning for each try to connect
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # jobs show progress of their own
    import ray

    if ray.is_initialized():
        yield
        return
    _init(address)
    try:
        yield
    finally:
        ray.shutdown()


def _init(address: str) -> None:
    import ray

    verbose = os.environ.get("HISTILL_VERBOSE") == "1"
    try:
        ray.init(
            address,
            # Without the dashboard, placement groups of trials that Tune stops early are never given back.
            include_dashboard=True if address == LOCAL else None,
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
            runtime_env={"worker_process_setup_hook": "histill.cluster.connect.tell_address"},
        )
    except ray.exceptions.AuthenticationError:
        raise InputError(
            f"Ray at {address} asks for a token and there is none here; {TOKEN_HINT}."
        ) from None
    except ConnectionError:
        # Ray keeps the cause to its log; what answers there has been looked at before.
        raise InputError(
            f"Ray at {address} answers and does not let this job join; {TOKEN_HINT}, and see that its version "
            f"of Ray is {ray.__version__} as here."
        ) from None
    except (TimeoutError, RuntimeError, ValueError) as error:
        text = str(error)
        reason = text.strip().splitlines()[0].rstrip(".") if text.strip() else type(error).__name__
        raise InputError(
            f"Ray at {address} cannot be joined ({reason}); check RAY_ADDRESS, or unset it to start Ray here."
        ) from None


def tell_address() -> None:
    """Run by Ray in each new worker: name the cluster in RAY_ADDRESS.

    Drivers inside workers, as Tune's trials are, otherwise look for a cluster on the machine, find none or
    another one, and leave the placement groups of stopped trials reserved.
    """
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def _prepare_own_cluster() -> None:
    """Choose how the new cluster is protected, before Ray is imported and reads it.

    Ray would turn token authentication on by itself and leave a token that everyone on the machine can read
    in the home folder. Unless the user has one, the token here lives and ends with this process and its
    children.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not given and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _check_address(address: str) -> None:
    """Raise InputError at once for an address that Ray would try for minutes."""
    if "://" in address:
        raise InputError(
            f"RAY_ADDRESS is {address}; host:port of the cluster's GCS was expected, or submit this job "
            f"there with `ray job submit --address {address}`."
        )
    host, separator, port = address.rpartition(":")
    if address == "auto":
        return
    if not separator or not port.isdigit():
        raise InputError(f"RAY_ADDRESS is {address!r}; host:port was expected, or nothing to start Ray here.")
    try:
        speaks_grpc = _speaks_grpc(host.strip("[]"), int(port))
    except OSError as error:
        raise InputError(
            f"nothing answers at RAY_ADDRESS={address} ({error.strerror or error}); start Ray, correct the "
            "address, or unset it to start Ray here."
        ) from None
    if not speaks_grpc:
        raise InputError(
            f"what answers at RAY_ADDRESS={address} is not Ray's GCS; give its port (6379 unless chosen "
            "otherwise), not the dashboard's."
        )


def _speaks_grpc(host: str, port: int) -> bool:
    """Whether an HTTP/2 server is there: its first frame must be SETTINGS (RFC 9113, section 3.4)."""
    if os.environ.get("RAY_USE_TLS") == "1":
        return True
    empty_settings = b"\0\0\0" + SETTINGS + b"\0" * 5
    with socket.create_connection((host, port), CONNECT_S) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty_settings)
        return connection.recv(4)[3:] == SETTINGS
