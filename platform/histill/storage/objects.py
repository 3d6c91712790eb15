"""Objects in S3 that are there whole or not at all: one request, or several that are completed by the last.

pyarrow's streams complete an upload whenever they are closed, and a `with` closes them when an exception or Ctrl-C
leaves it; the object is then there, and short. So nothing here is written through a stream.
"""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import fsspec

_PART_BYTES = 32 * 2**20  # objects of less than two parts are one request
_PARTS_AT_ONCE = 3
_CONFLICTS, _CONFLICT_WAIT_S = 10, 0.2
_REFUSED = ("PreconditionFailed", "412")
_CONFLICTING = ("ConditionalRequestConflict", "OperationAborted", "409")


def put_object(filesystem: "fsspec.AbstractFileSystem", uri: str, data: bytes) -> None:
    """Write the object whole: a reader sees the old one or the new one, never a part."""
    filesystem.pipe_file(uri, data, chunksize=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)


def create_object(filesystem: "fsspec.AbstractFileSystem", uri: str, data: bytes) -> bool:
    """Write a small object if there is none (`If-None-Match: *`); whether it was written."""
    return _put_if(filesystem, uri, data, IfNoneMatch="*")


def swap_object(filesystem: "fsspec.AbstractFileSystem", uri: str, expected: bytes, data: bytes) -> bool:
    """Write a small object if it holds `expected` (`If-Match`); whether it was written."""
    try:
        # If it changes in between, what is read is newer than the tag, and the tag is refused.
        tag = filesystem.info(uri)["ETag"]
        if filesystem.cat_file(uri) != expected:
            return False
        return _put_if(filesystem, uri, data, IfMatch=tag)
    except FileNotFoundError:
        return False


def _put_if(filesystem: "fsspec.AbstractFileSystem", uri: str, data: bytes, **condition: str) -> bool:
    bucket, key, _ = filesystem.split_path(uri)
    for attempt in range(_CONFLICTS):
        try:
            filesystem.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
        except OSError as error:
            # s3fs makes a FileExistsError of it only where the server names the condition
            said = _code(error)
            if isinstance(error, FileExistsError) or said in _REFUSED:
                return False
            if said not in _CONFLICTING or attempt == _CONFLICTS - 1:
                raise
            time.sleep(_CONFLICT_WAIT_S)
        else:
            return True
    raise AssertionError("unreachable")


def _code(error: OSError) -> Any:
    return getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
