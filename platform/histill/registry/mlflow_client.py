"""Connect to the tracking server, and explain its errors."""

import contextlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

from histill.config.common import Tracking
from histill.config.places import read_server
from histill.config.redact import redact
from histill.errors import InputError
from histill.storage.scratch import scratch_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

UNREACHABLE = "cannot be reached"
UNAUTHORISED = "refused the credentials"
_ANSWER_WITHIN_S = 10.0
_DEFAULTS = {
    # MLflow's default retries take minutes to give up on an unreachable server
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # stdout is for the job's JSON line, stderr for its progress
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # jobs in a hospital must not phone home
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def server_uri(tracking: Tracking) -> str | None:
    """The tracking server's address: the configured one, $MLFLOW_TRACKING_URI, or None for no tracking.

    Raises InputError when it is not an http(s) address, or contains credentials.
    """
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or None
    if uri is None:
        return None
    if strip_userinfo(uri) != uri:
        raise InputError(
            "the address in MLFLOW_TRACKING_URI holds credentials; take them out and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead.",
            code="config-credentials",
        )
    try:
        return read_server(uri).rstrip("/")
    except ValueError:
        raise InputError(
            f"the tracking server {uri} is not an http(s):// address; start one with `mlflow server` and set "
            "tracking.uri to its address.",
            code="config-wrong-value",
        ) from None


def require_server_uri(tracking: Tracking) -> str:
    """The address of a tracking server that answers. Raises InputError if none is configured or it does not answer."""
    uri = server_uri(tracking)
    if uri is None:
        raise InputError(
            "the model registry needs a tracking server; set tracking.uri (or MLFLOW_TRACKING_URI) to its address.",
            code="config-missing-key",
        )
    check_reachable(uri)
    return uri


def check_tracking(tracking: Tracking) -> None:
    """Raise InputError when a server is configured and does not answer; jobs call this before they start Ray."""
    uri = server_uri(tracking)
    if uri is not None:
        check_reachable(uri)


def check_reachable(uri: str) -> None:
    """Raise InputError when `uri` does not answer within 10 s; any HTTP response counts as an answer."""
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=_ANSWER_WITHIN_S):
            return
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError, http.client.HTTPException):
        raise _unreachable(uri) from None


def check_accepted(uri: str) -> None:
    """Raise InputError when `uri` does not answer or refuses the credentials; nothing is written."""
    check_reachable(uri)
    client = connect(uri)
    with server_errors(uri):
        client.search_experiments(max_results=1)


def connect(uri: str) -> "MlflowClient":
    """A client of the server at `uri`; sends no request yet."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # it warns at each attempt; the error after the last one is enough
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def error_code(error: Exception) -> str:
    """MLflow's error code, such as RESOURCE_DOES_NOT_EXIST; empty for errors of other libraries."""
    return str(getattr(error, "error_code", ""))


@contextlib.contextmanager
def server_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's exceptions about the server at `uri` into one-sentence InputErrors."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except (MlflowException, RequestException) as error:
        said = explain_error(error)
        if said == UNREACHABLE:
            raise _unreachable(uri) from None
        hint = "; look at the server's log"
        if said == UNAUTHORISED:
            hint = "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of a writer"
        raise InputError(f"the tracking server {uri} {said}{hint}.", code="tracking-refused") from None


def explain_error(error: Exception) -> str:
    """Explain an error, as the predicate of a sentence whose subject is the server."""
    text = strip_userinfo(str(error))
    if "failed with error code 401" in text or "401 Client Error" in text:
        return UNAUTHORISED
    if "Max retries exceeded" in text or "timed out" in text:
        return UNREACHABLE
    lines = text.strip().splitlines()
    return f"refused: {lines[0][:200].rstrip('. ') if lines else 'no reason given'}"


def log_file(client: "MlflowClient", run_id: str, path: str, data: bytes) -> None:
    """Store `data` as the artifact `path` (`folder/name` or `name`) of a run."""
    folder, _, name = path.rpartition("/")
    with scratch_folder() as temporary:
        local = os.path.join(temporary, name)
        with open(local, "wb") as file:
            file.write(data)
        client.log_artifact(run_id, local, folder or None)


def strip_userinfo(text: str) -> str:
    """`text` without secrets, such as the `user:password@` and the query of every address."""
    return redact(text)


def _unreachable(uri: str) -> InputError:
    return InputError(
        f"the tracking server {uri} {UNREACHABLE}; start it, or correct tracking.uri (MLFLOW_TRACKING_URI).",
        code="tracking-unreachable",
    )
