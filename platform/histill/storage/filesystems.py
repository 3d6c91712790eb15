"""File systems for a URI, pyarrow's for bytes and fsspec's for control files, and their errors as sentences."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from histill.config.common import Storage
from histill.errors import AwayError, InputError
from histill.storage.scheme import missing_package, scheme_of
from histill.storage.uris import is_remote, path_within

if TYPE_CHECKING:
    import fsspec
    from pyarrow import fs


def arrow_filesystem(uri: str, storage: Storage, *, attempts: int | None = None) -> tuple["fs.FileSystem", str]:
    """pyarrow's file system for `uri`, and the path within it (`bucket/key`, or an absolute local path).

    `attempts` stands for the storage's own, where the caller repeats what fails.
    """
    from pyarrow import fs

    path, open_bytes = path_within(uri), scheme_of(uri).open_bytes
    if open_bytes is not None:
        return open_bytes(uri, storage, attempts or storage.attempts), path
    return fs.PyFileSystem(fs.FSSpecHandler(control_filesystem(uri, storage)[0])), path


def control_filesystem(uri: str, storage: Storage) -> tuple["fsspec.AbstractFileSystem", str]:
    """fsspec's file system for `uri`, and the path within it."""
    path = uri if is_remote(uri) else path_within(uri)
    try:
        return scheme_of(uri).open_control(uri, storage), path
    except ImportError:
        raise missing_package(uri) from None


@contextlib.contextmanager
def storage_errors(uri: str, storage: Storage) -> Iterator[None]:
    """Turn what a scheme's clients raise about credentials, buckets and connections into one sentence about `uri`.

    Raises InputError. A missing object stays FileNotFoundError, since the caller knows what it was for.
    """
    try:
        yield
    except FileNotFoundError as error:
        if any(text in str(error) for text in scheme_of(uri).errors.missing_bucket):
            raise InputError(f"the bucket of {uri} does not exist; create it or correct the name.") from None
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in scheme_of(uri).packages:
            raise
        raise storage_error(uri, storage, error) from None


def storage_error(uri: str, storage: Storage, error: Exception) -> InputError:
    """The sentence for an error of either client."""
    if is_remote(uri):
        scheme, text = scheme_of(uri), f"{type(error).__name__}: {error}"
        where = scheme.server(storage)
        if any(each in text for each in scheme.errors.missing_bucket):
            return InputError(f"the bucket of {uri} does not exist at {where}; create it or correct the name.")
        for texts, did in scheme.errors.refused:
            if any(each in text for each in texts):
                return InputError(f"{where} {did} for {uri}; {scheme.credentials} that may use this bucket.")
        if any(each in text for each in scheme.errors.unreachable):
            return AwayError(f"{where} cannot be reached for {uri}; start it, or set {scheme.setting} to where it is.")
        if isinstance(error, OSError) and (reason := scheme.transient_reason(error)) is not None:
            return AwayError(
                f"{where} does not serve {uri} at present ({reason}); look after the server, and give the same command "
                "again."
            )
    return InputError(f"{uri} cannot be used: {str(error).splitlines()[0] if str(error) else type(error).__name__}.")
