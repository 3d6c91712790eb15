"""Check what this process can read and write: object storage and the tracking server. Runs in driver and nodes."""

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
    CONDITIONAL: "look into the storage server's log",
    TRACKING: "check tracking.uri (or MLFLOW_TRACKING_URI) and the tracking server's log",
}
_SOON_S = 10.0
_OURS = ".check-"  # how the names of the probe's own files begin


def check_connectivity(config: CheckConfig, written: str | None = None) -> dict[str, Verdict]:
    """Check -> verdict, for what `config` names; never raises.

    `written` is the name of a file that the driver has put below `config.write`: it must be there.
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
    """While the block lasts, the name of a file below `uri`. Raises InputError when the storage refuses."""
    storage = _impatient(storage)
    name = _name()
    _write(uri, name, storage)
    try:
        yield name
    finally:
        with contextlib.suppress(OSError, HistillError):  # what was found meanwhile is worth more than an empty file
            _remove(uri, name, storage)


def check_reading(uri: str, storage: Storage) -> Verdict:
    """Find a file below `uri` by the client for control files, and read of it by the one for tiles."""
    found = _first_file(uri, storage)
    if found is None:
        return Verdict("failed", f"there is no file below {uri}", "correct `read`, or make what belongs there first")
    filesystem, path = arrow_filesystem(found, storage)
    with storage_errors(found, storage), filesystem.open_input_stream(path) as stream:
        stream.read(1)
    return Verdict("ok", f"{uri} can be read")


def check_writing(uri: str, storage: Storage, written: str | None) -> Verdict:
    """Write a file below `uri` by the client for tiles, read and remove it by the other; find the driver's, too."""
    _refuse_a_missing_bucket(uri, storage)
    mine = _name()
    _write(uri, mine, storage)
    try:
        same = _holds_its_name(uri, mine, storage)
    finally:
        _remove(uri, mine, storage)
    if not same:
        found = f"a file written to {uri} does not come back as it was written"
        return Verdict("failed", found, "look into the storage server's log")
    if written is None or _holds_its_name(uri, written, storage):
        return Verdict("ok", f"{uri} can be written")
    if is_remote(uri):
        scheme = scheme_of(uri)
        found = f"what the driver wrote to {uri} is not there at {scheme.server(storage)}"
        return Verdict("failed", found, f"set {scheme.setting} everywhere to the same server")
    found = f"what the driver wrote to {uri} is not there: the folder is another one here"
    return Verdict("failed", found, "name a folder that all nodes share by its absolute path, or an s3:// one")


def check_conditional_writing(uri: str, storage: Storage) -> Verdict:
    """Whether the server refuses to write over an object when asked not to (`If-None-Match: *`).

    Without it two jobs that begin one output at the same time may not see each other, which is a warning.
    """
    mine = _name()
    scheme = scheme_of(uri)
    filesystem, path = control_filesystem(join(uri, mine), storage)
    where = scheme.server(storage)
    fix = "update the server, or never give two jobs one output or name at the same time"
    try:
        if not scheme.create(filesystem, path, b""):
            return Verdict("warning", f"{where} refuses to write a new object if there is none (If-None-Match)", fix)
        if scheme.create(filesystem, path, b""):
            return Verdict("warning", f"{where} writes over an object in spite of If-None-Match", fix)
    except OSError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Verdict("warning", f"{where} does not know conditional writes ({reason[:100]})", fix)
    finally:
        _remove(uri, mine, storage)
    return Verdict("ok", "a second writer of one object is refused")


def check_tracking_server(uri: str) -> Verdict:
    """Whether the tracking server answers, and takes the credentials."""
    check_accepted(uri)
    return Verdict("ok", f"{uri} answers")


def _refuse_a_missing_bucket(uri: str, storage: Storage) -> None:
    # Some servers make a missing bucket at the first write, which would hide a misspelt name.
    if is_remote(uri):
        _first_file(uri, storage)


def _write(uri: str, name: str, storage: Storage) -> None:
    filesystem, path = control_filesystem(join(uri, name), storage)
    with storage_errors(uri, storage):
        scheme_of(uri).overwrite(filesystem, path, name.encode())


def _holds_its_name(uri: str, name: str, storage: Storage) -> bool:
    """Whether the file `name` below `uri` is there, and whole."""
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
    """`storage` with one try and short waits: a probe is to answer soon."""
    return storage.model_copy(update={"attempts": 1, "request_timeout_s": min(_SOON_S, storage.request_timeout_s)})


def _name() -> str:
    return f"{_OURS}{uuid.uuid4().hex}"
