"""Open the file systems of a URI, pyarrow's for data and fsspec's for control files, and explain their errors."""

import contextlib
import errno
import os
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

from histill.config.common import Storage
from histill.errors import ErrorCode, InputError, UnavailableError
from histill.storage.scheme import missing_package, scheme_of
from histill.storage.uris import bucket_of, is_remote, path_within

if TYPE_CHECKING:
    import fsspec
    from pyarrow import fs


def arrow_filesystem(uri: str, storage: Storage, *, attempts: int | None = None) -> tuple["fs.FileSystem", str]:
    """pyarrow's file system for `uri`, and the path within it (`bucket/key`, or an absolute local path).

    `attempts` overrides the storage's own setting, for a caller that retries by itself.
    """
    path, open_bytes = path_within(uri), scheme_of(uri).open_bytes
    if open_bytes is not None:
        return open_bytes(uri, storage, attempts or storage.attempts), path
    from pyarrow import fs

    from histill.storage.through_fsspec import FsspecHandler

    return fs.PyFileSystem(FsspecHandler(control_filesystem(uri, storage)[0])), path


def control_filesystem(uri: str, storage: Storage) -> tuple["fsspec.AbstractFileSystem", str]:
    """fsspec's file system for `uri`, and the path within it."""
    path = uri if is_remote(uri) else path_within(uri)
    try:
        return scheme_of(uri).open_control(uri, storage), path
    except ImportError:
        raise missing_package(uri) from None


_NEXT_STEPS: dict[int, tuple[ErrorCode, str]] = {
    errno.EACCES: ("storage-denied", "give this user access to it, or name another place"),
    errno.EPERM: ("storage-denied", "give this user access to it, or name another place"),
    errno.ENOENT: ("storage-unusable", "no folder can be created there, so name another place"),
    errno.ENOTDIR: ("storage-unusable", "a file stands where a folder is needed, so correct the path"),
    errno.EISDIR: ("storage-unusable", "a folder stands where a file is needed, so correct the path"),
    errno.EEXIST: ("storage-unusable", "a file stands where a folder is needed, so correct the path"),
    errno.EROFS: ("storage-denied", "name a place that can be written"),
    errno.ENOSPC: ("disk-full", "make room there, and give the same command again"),
    errno.EDQUOT: ("disk-full", "make room there, and give the same command again"),
    errno.ENAMETOOLONG: ("storage-unusable", "choose a shorter name"),
}


def client_key(uri: str, storage: Storage) -> Hashable:
    """A key that is equal for URIs that can share a client, and changes once the client's keys must be renewed."""
    return bucket_of(uri), storage.model_dump_json(), scheme_of(uri).keys(uri, storage)


@contextlib.contextmanager
def storage_errors(uri: str, storage: Storage) -> Iterator[None]:
    """Turn a client's errors about credentials, buckets and connections into an InputError about `uri`.

    A missing object stays FileNotFoundError, since the caller knows what it was for.
    """
    try:
        yield
    except FileNotFoundError as error:
        if any(text in str(error) for text in scheme_of(uri).errors.missing_bucket):
            raise InputError(
                f"the bucket of {uri} does not exist; create it or correct the name.", code="bucket-missing"
            ) from None
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in scheme_of(uri).packages:
            raise
        raise storage_error(uri, storage, error) from None


@contextlib.contextmanager
def writing_errors(uri: str, storage: Storage) -> Iterator[None]:
    """`storage_errors` for a writer of `uri`: a missing local path is an InputError, too.

    A writer creates its folders, so only one that cannot be created can be missing.
    """
    with storage_errors(uri, storage):
        try:
            yield
        except FileNotFoundError as error:
            if is_remote(uri):
                raise
            raise _local_error(uri, error) from None


def storage_error(uri: str, storage: Storage, error: Exception) -> InputError:
    """The InputError for an error of either client."""
    if is_remote(uri):
        scheme, text = scheme_of(uri), f"{type(error).__name__}: {error}"
        where = scheme.server(storage)
        if any(each in text for each in scheme.errors.missing_bucket):
            return InputError(
                f"the bucket of {uri} does not exist at {where}; create it or correct the name.", code="bucket-missing"
            )
        for texts, did in scheme.errors.refused:
            if any(each in text for each in texts):
                return InputError(
                    f"{where} {did} for {uri}; {scheme.credentials} that may use this bucket.", code="storage-denied"
                )
        if any(each in text for each in scheme.errors.unreachable):
            return UnavailableError(
                f"{where} cannot be reached for {uri}; start it, or set {scheme.setting} to where it is.",
                code="storage-unreachable",
            )
        if isinstance(error, OSError) and (reason := scheme.transient_reason(error)) is not None:
            return UnavailableError(
                f"{where} does not serve {uri} at present ({reason}); check the server, and give the same command "
                "again.",
                code="storage-unreachable",
            )
    if isinstance(error, OSError) and not is_remote(uri):
        return _local_error(uri, error)
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"{uri} cannot be used: {said}; fix what it names, or name another place.", code="storage-unusable"
    )


def _local_error(uri: str, error: OSError) -> InputError:
    """The InputError for an error of the operating system about a local path."""
    if error.errno is None:  # pyarrow's own message
        said = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    else:
        said = os.strerror(error.errno).lower()
        if isinstance(error.filename, str) and error.filename.rstrip("/") != path_within(uri):
            said += f" at {error.filename}"
    code, step = _NEXT_STEPS.get(error.errno or 0, ("storage-unusable", "check what it names, or name another place"))
    return InputError(f"{uri} cannot be used ({said}); {step}.", code=code)
