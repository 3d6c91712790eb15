"""Check that this process can reach object storage and the tracking server. Runs on the driver and on nodes."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from functools import partial

from histill.config.check_cluster import CheckConfig
from histill.config.common import Storage
from histill.errors import HistillError
from histill.preflight.results import Verdict, verdict_of
from histill.registry.mlflow_client import check_accepted
from histill.storage.control import remove
from histill.storage.filesystems import arrow_filesystem, control_filesystem, storage_errors
from histill.storage.scheme import scheme_of
from histill.storage.uris import is_remote, join

CHECKS = READ, WRITE, CONDITIONAL, TRACKING = "read", "write", "conditional write", "MLflow"
_ADVICE = {
    READ: "check `read`, storage.endpoint (or AWS_ENDPOINT_URL) and the storage server's log",
    WRITE: "check `write`, storage.endpoint (or AWS_ENDPOINT_URL) and the storage server's log",
    CONDITIONAL: "check the storage server's log",
    TRACKING: "check tracking.uri (or MLFLOW_TRACKING_URI) and the tracking server's log",
}
_SOON_S = 10.0
_OURS = ".check-"  # prefix of the probe's own files


def check_connectivity(config: CheckConfig, written: str | None = None) -> dict[str, Verdict]:
    """Run the checks for the places that `config` names: check -> verdict; never raises.

    `written` is the name of a file that the driver has written below `config.write`: it must exist.
    """
    verdicts: dict[str, Verdict] = {}
    for check, look in _looks(config, written).items():
        if check == CONDITIONAL and verdicts[WRITE].state == "failed":
            continue  # it would fail for the same reason
        try:
            verdicts[check] = look()
        except Exception as error:
            verdicts[check] = verdict_of(error, _ADVICE[check])
    return verdicts


def _looks(config: CheckConfig, written: str | None) -> dict[str, Callable[[], Verdict]]:
    storage = _impatient(config.storage)
    looks: dict[str, Callable[[], Verdict]] = {}
    if config.read is not None:
        looks[READ] = partial(check_reading, config.read, storage)
    if config.write is not None:
        looks[WRITE] = partial(check_writing, config.write, storage, written)
        if is_remote(config.write):
            looks[CONDITIONAL] = partial(check_conditional_writing, config.write, storage)
    if config.tracking.uri is not None:
        looks[TRACKING] = partial(check_tracking_server, config.tracking.uri)
    return looks


@contextlib.contextmanager
def probe_marker(uri: str, storage: Storage) -> Iterator[str]:
    """Keep a file below `uri` for the duration of the block, and yield its name. Raises InputError if that fails."""
    storage = _impatient(storage)
    name = _name()
    _write(uri, name, storage)
    try:
        yield name
    finally:
        with contextlib.suppress(OSError, HistillError):  # a leftover empty file must not hide the results
            _remove(uri, name, storage)


def check_reading(uri: str, storage: Storage) -> Verdict:
    """Find a file below `uri` with the client for control files, and read from it with the one for tiles."""
    found = _first_file(uri, storage)
    if found is None:
        return Verdict("failed", f"there is no file below {uri}", "correct `read`, or create its content first")
    filesystem, path = arrow_filesystem(found, storage)
    with storage_errors(found, storage), filesystem.open_input_stream(path) as stream:
        stream.read(1)
    return Verdict("ok", f"{uri} can be read")


def check_writing(uri: str, storage: Storage, written: str | None) -> Verdict:
    """Write a file below `uri` with the client for tiles, read and remove it with the other; find the driver's file."""
    _refuse_a_missing_bucket(uri, storage)
    mine = _name()
    _write(uri, mine, storage)
    try:
        same = _holds_its_name(uri, mine, storage)
    finally:
        _remove(uri, mine, storage)
    if not same:
        found = f"a file written to {uri} reads back differently"
        return Verdict("failed", found, "check the storage server's log")
    if written is None or _holds_its_name(uri, written, storage):
        return Verdict("ok", f"{uri} can be written")
    if is_remote(uri):
        scheme = scheme_of(uri)
        found = f"what the driver wrote to {uri} is not there at {scheme.server(storage)}"
        return Verdict("failed", found, f"set {scheme.setting} everywhere to the same server")
    found = f"what the driver wrote to {uri} is not there: the path is a different folder here"
    return Verdict("failed", found, "name a folder that all nodes share by its absolute path, or an s3:// one")


def check_conditional_writing(uri: str, storage: Storage) -> Verdict:
    """Whether the server supports conditional writes, refusing to overwrite an object (`If-None-Match: *`).

    Without them two jobs that start the same output at the same time may not notice each other, hence a warning.
    """
    mine = _name()
    scheme = scheme_of(uri)
    filesystem, path = control_filesystem(join(uri, mine), storage)
    where = scheme.server(storage)
    fix = "update the server, or never run two jobs with the same output or name at the same time"
    try:
        if not scheme.create(filesystem, path, b""):
            return Verdict("warning", f"{where} refuses a conditional write of a new object (If-None-Match)", fix)
        if scheme.create(filesystem, path, b""):
            return Verdict("warning", f"{where} overwrites an object in spite of If-None-Match", fix)
    except OSError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Verdict("warning", f"{where} does not support conditional writes ({reason[:100]})", fix)
    finally:
        _remove(uri, mine, storage)
    return Verdict("ok", "a second writer of one object is refused")


def check_tracking_server(uri: str) -> Verdict:
    """Whether the tracking server answers and accepts the credentials."""
    check_accepted(uri)
    return Verdict("ok", f"{uri} answers")


def _refuse_a_missing_bucket(uri: str, storage: Storage) -> None:
    # Some servers create a missing bucket on the first write, which would hide a misspelt name.
    if is_remote(uri):
        _first_file(uri, storage)


def _write(uri: str, name: str, storage: Storage) -> None:
    filesystem, path = control_filesystem(join(uri, name), storage)
    with storage_errors(uri, storage):
        scheme_of(uri).overwrite(filesystem, path, name.encode())


def _holds_its_name(uri: str, name: str, storage: Storage) -> bool:
    """Whether the file `name` below `uri` exists with its full content."""
    filesystem, path = control_filesystem(join(uri, name), storage)
    try:
        with storage_errors(uri, storage):
            return bool(filesystem.cat_file(path) == name.encode())
    except FileNotFoundError:
        return False


def _remove(uri: str, name: str, storage: Storage) -> None:
    with contextlib.suppress(FileNotFoundError):
        remove(join(uri, name), storage)


def _first_file(uri: str, storage: Storage) -> str | None:
    filesystem, _ = control_filesystem(uri, storage)
    with contextlib.suppress(FileNotFoundError), storage_errors(uri, storage):
        walk = scheme_of(uri).walk(filesystem, uri, storage)
        return next((each for each in walk if not _is_ours(each)), None)
    return None


def _is_ours(path: str) -> bool:
    return path.rpartition("/")[2].startswith(_OURS)


def _impatient(storage: Storage) -> Storage:
    """`storage` with a single attempt and short timeouts, so that probes answer soon."""
    return storage.model_copy(update={"attempts": 1, "request_timeout_s": min(_SOON_S, storage.request_timeout_s)})


def _name() -> str:
    return f"{_OURS}{uuid.uuid4().hex}"
