"""s3://: AWS S3 and compatible servers; shards through pyarrow's client, control files through s3fs.

Objects are written atomically, by one request or by a multipart upload that its last request completes. pyarrow's
streams complete an upload whenever they are closed, and a `with` closes them even when an exception or Ctrl-C leaves
it; the object then exists, truncated. So nothing here is written through a stream.

Measured against broken replies with pyarrow 25: with `AwsStandardS3RetryStrategy(max_attempts=n)` the SDK itself
retries a request after a 503, a reset, a stall and a body shorter than its Content-Length: n attempts in all, with
waits that add up to about 5 seconds for n = 4. What it lets through is a plain OSError; only its text gives the cause:

    503           AWS Error SLOW_DOWN (GET); AWS Error UNKNOWN (HTTP status 503) (HEAD)
    reset         AWS Error NETWORK_CONNECTION ... curlCode: 56
    stall         AWS Error NETWORK_CONNECTION ... curlCode: 28, up to 6 s after `request_timeout` of silence
    short body    AWS Error NETWORK_CONNECTION ... curlCode: 18; it is never taken for the end of the object
"""

import contextlib
import errno
import functools
import os
import re
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from histill.config.common import Storage
from histill.config.places import read_server
from histill.errors import InputError
from histill.storage.scheme import Content, ErrorTexts, ReadRange, Scheme, transient_by_type

if TYPE_CHECKING:
    import fsspec
    from pyarrow import fs

_PART_BYTES = 32 * 2**20  # objects of less than two parts are one request
_PARTS_AT_ONCE = 3
_CONFLICTS, _CONFLICT_WAIT_S = 10, 0.2
_REFUSED = ("PreconditionFailed", "412")
_CONFLICTING = ("ConditionalRequestConflict", "OperationAborted", "409")
_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
_SETTING = "storage.endpoint (or AWS_ENDPOINT_URL)"
_TRANSIENT = re.compile(
    r"AWS Error (?P<name>NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT"
    r")\b|(?P<status>HTTP status (?:408|429|5\d\d))\b"
)
_OF_S3FS = {errno.EBUSY: "SLOW_DOWN", errno.EREMOTEIO: "INTERNAL_FAILURE"}  # how s3fs reports these errors


def endpoint_of(storage: Storage) -> str | None:
    """The configured S3 endpoint, or the environment's, or None for AWS itself.

    Raises InputError when the environment's is not an http(s) address, or contains credentials.
    """
    if storage.endpoint:
        return storage.endpoint
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if given := os.environ.get(name):
            try:
                return read_server(given)
            except ValueError as error:
                raise InputError(f"{name} cannot be used: {error}.", code="storage-endpoint") from None
    return None


def server_of(storage: Storage) -> str:
    """What errors call the server."""
    return endpoint_of(storage) or "AWS S3"


def open_bytes(uri: str, storage: Storage, attempts: int) -> "fs.FileSystem":
    """pyarrow's S3 client for the bucket of `uri`; costs half the CPU of s3fs."""
    from pyarrow import fs

    options: dict[str, Any] = {
        "connect_timeout": storage.connect_timeout_s,
        "request_timeout": storage.request_timeout_s,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    }
    endpoint = endpoint_of(storage)
    if endpoint:
        options |= {"endpoint_override": endpoint, "region": storage.region or "us-east-1"}
    elif storage.region:
        options["region"] = storage.region
    if (keys := keys_of(uri, storage)) is not None:
        options |= dict(zip(("access_key", "secret_key", "session_token"), keys, strict=True))
    return fs.S3FileSystem(**options)


def open_control(uri: str, storage: Storage) -> "fsspec.AbstractFileSystem":
    """s3fs' file system for the bucket of `uri`, without caches."""
    import fsspec

    client: dict[str, Any] = {"endpoint_url": endpoint_of(storage)}
    if storage.region:
        client["region_name"] = storage.region
    config = {
        "connect_timeout": storage.connect_timeout_s,
        "read_timeout": storage.request_timeout_s,
        "retries": {"max_attempts": storage.attempts, "mode": "standard"},
    }
    keys = keys_of(uri, storage) or (None, None, None)
    filesystem = fsspec.filesystem(
        "s3",
        client_kwargs=client,
        config_kwargs=config,
        use_listings_cache=False,
        default_fill_cache=False,
        max_concurrency=1,  # otherwise a read begins with a HEAD, and refusing one sends no body with the reason
        **dict(zip(("key", "secret", "token"), keys, strict=True)),
    )
    if storage.attempts == 1:
        filesystem.retries = 1  # s3fs's own, on top of those of its client
    return filesystem


def keys_of(uri: str, storage: Storage) -> tuple[str, str, str | None] | None:
    """Unexpired keys of the AWS profile that is configured for the bucket of `uri`; None: the default chain.

    pyarrow supports no profile but $AWS_PROFILE. Raises InputError for a profile without keys, and for one whose keys
    expire and are not renewed.
    """
    profile = storage.profiles.get(uri.removeprefix("s3://").partition("/")[0])
    if profile is None:
        return None
    credentials = _credentials_of(profile, tuple(map(_state_of, _FILES.items())))
    keys = credentials.get_frozen_credentials()
    if keys.token and not hasattr(credentials, "refresh_needed"):
        raise InputError(
            f"storage.profiles names the AWS profile {profile!r}, whose keys on {socket.gethostname()} expire, maybe "
            "in the middle of a run; name one whose keys are renewed (by SSO, a role or credential_process), or one "
            "with an access key of its own, or none, and use the node's role.",
            code="storage-profile",
        )
    return keys.access_key, keys.secret_key, keys.token


@functools.lru_cache(maxsize=64)
def _credentials_of(profile: str, files: tuple[Any, ...]) -> Any:
    """botocore's credentials of a profile, renewed by it in time; cached as long as `files` do not change."""
    import botocore.exceptions
    import botocore.session

    try:
        credentials = botocore.session.Session(profile=profile).get_credentials()
    except botocore.exceptions.ProfileNotFound:
        credentials = None
    if credentials is None:
        raise InputError(
            f"storage.profiles names the AWS profile {profile!r}, and {socket.gethostname()} has none with keys; add "
            "it to ~/.aws/credentials (or $AWS_SHARED_CREDENTIALS_FILE) on every node.",
            code="storage-profile",
        )
    return credentials


def _state_of(file: tuple[str, str]) -> tuple[str, int | None]:
    """The path and modification time of a file that botocore reads."""
    variable, usual = file
    path = os.path.expanduser(os.environ.get(variable) or usual)
    try:
        return path, os.stat(path).st_mtime_ns
    except OSError:
        return path, None


def overwrite(filesystem: "fsspec.AbstractFileSystem", uri: str, data: Content) -> None:
    """Write the object atomically: a reader sees the old one or the new one, never a part."""
    data = data if len(data) >= 2 * _PART_BYTES else data[:]  # one request has no parts to be cut from a map
    filesystem.pipe_file(uri, data, chunksize=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)


def create(filesystem: "fsspec.AbstractFileSystem", uri: str, data: bytes) -> bool:
    """Create a small object unless it exists (`If-None-Match: *`); return whether it was written."""
    with contextlib.suppress(FileNotFoundError):  # for servers that do not support conditional writes
        filesystem.cat_file(uri)
        return False
    return _put_if(filesystem, uri, data, IfNoneMatch="*")


def swap(filesystem: "fsspec.AbstractFileSystem", uri: str, expected: bytes, data: bytes) -> bool:
    """Replace a small object if it holds `expected` (`If-Match`); return whether it was written."""
    try:
        # If the object changes in between, the content is newer than the tag, and the write is refused.
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
            # s3fs raises FileExistsError only if the server names the condition
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


def walk(filesystem: "fsspec.AbstractFileSystem", uri: str, storage: Storage) -> Iterator[str]:
    """A few of the objects below `uri`, listed by one request."""
    bucket, _, key = uri.removeprefix("s3://").rstrip("/").partition("/")
    prefix = f"{key}/" if key else ""
    try:
        listed = filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=10)
    except FileNotFoundError as error:
        if any(text in str(error) for text in SCHEME.errors.missing_bucket):
            raise
        raise InputError(
            f"{server_of(storage)} does not list {uri} as an S3 server does; set {_SETTING} to one.",
            code="storage-endpoint",
        ) from None
    keys = (str(each["Key"]) for each in listed.get("Contents", ()))
    return (f"s3://{bucket}/{key}" for key in keys if not key.endswith("/"))


def transient_reason(error: OSError) -> str | None:
    """The reason why a retry may succeed; None if it would not."""
    if (reason := transient_by_type(error)) is not None or error.errno in _OF_S3FS:
        return reason or _OF_S3FS[error.errno or 0]
    found = _TRANSIENT.search(str(error))
    return None if found is None else found["name"] or found["status"]


def open_ranges(uri: str, storage: Storage) -> ReadRange | None:
    """The reader of byte ranges for the bucket of `uri`, if there can be one."""
    from histill.storage.schemes import s3_ranges

    return s3_ranges.open_ranges(uri, storage)


SCHEME = Scheme(
    name="s3",
    open_bytes=open_bytes,
    open_ranges=open_ranges,
    open_control=open_control,
    overwrite=overwrite,
    create=create,
    swap=swap,
    walk=walk,
    keys=keys_of,
    package="s3fs",
    packages=("botocore", "aiobotocore", "aiohttp"),
    server=server_of,
    setting=_SETTING,
    credentials="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile or role of the AWS chain, or "
    "storage.profiles)",
    errors=ErrorTexts(
        missing_bucket=("NoSuchBucket", "NO_SUCH_BUCKET", "bucket does not exist"),
        refused=(
            (
                ("SignatureDoesNotMatch", "SIGNATURE_DOES_NOT_MATCH", "signature we calculated"),
                "refused the secret key",
            ),
            (("InvalidAccessKeyId", "INVALID_ACCESS_KEY_ID", "access key"), "does not know the access key"),
            (
                ("ACCESS_DENIED", "AccessDenied", "Access Denied", "Forbidden", "HTTP response code 403"),
                "denied access",
            ),
            (("NoCredentials", "Unable to locate credentials"), "needs credentials, and none were found"),
        ),
        unreachable=("NETWORK_CONNECTION", "Connect", "timed out", "Timeout", "curlCode", "Could not connect"),
        client=("AWS Error",),
    ),
    transient_reason=transient_reason,
)
