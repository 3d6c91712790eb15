"""File systems for a URI: pyarrow's for bytes, fsspec's for control files."""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.uris import is_s3

if TYPE_CHECKING:
    import fsspec
    from pyarrow import fs

CREDENTIALS_HINT = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile or role of the AWS chain)"


def endpoint_of(storage: Storage) -> str | None:
    """The configured S3 endpoint, or the environment's, or None for AWS itself."""
    return storage.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def arrow_filesystem(uri: str, storage: Storage, *, attempts: int | None = None) -> tuple["fs.FileSystem", str]:
    """pyarrow's file system for `uri`, and the path within it (`bucket/key`, or an absolute local path).

    `attempts` stands for the storage's own, where the caller repeats what fails.
    """
    from pyarrow import fs

    if not is_s3(uri):
        return fs.LocalFileSystem(), arrow_path(uri)
    options: dict[str, Any] = {
        "connect_timeout": storage.connect_timeout_s,
        "request_timeout": storage.request_timeout_s,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=attempts or storage.attempts),
    }
    endpoint = endpoint_of(storage)
    if endpoint:
        options |= {"endpoint_override": endpoint, "region": storage.region or "us-east-1"}
    elif storage.region:
        options["region"] = storage.region
    return fs.S3FileSystem(**options), arrow_path(uri)


def arrow_path(uri: str) -> str:
    """The path of `uri` within pyarrow's file system for it."""
    return uri.removeprefix("s3://").rstrip("/") if is_s3(uri) else os.path.abspath(uri)


def control_filesystem(uri: str, storage: Storage) -> tuple["fsspec.AbstractFileSystem", str]:
    """fsspec's file system for `uri`, and the path within it."""
    import fsspec

    if not is_s3(uri):
        return fsspec.filesystem("file"), os.path.abspath(uri)
    client: dict[str, Any] = {"endpoint_url": endpoint_of(storage)}
    if storage.region:
        client["region_name"] = storage.region
    config = {
        "connect_timeout": storage.connect_timeout_s,
        "read_timeout": storage.request_timeout_s,
        "retries": {"max_attempts": storage.attempts, "mode": "standard"},
    }
    filesystem = fsspec.filesystem(
        "s3", client_kwargs=client, config_kwargs=config, use_listings_cache=False, default_fill_cache=False
    )
    return filesystem, uri


_MARKS = (
    (("SignatureDoesNotMatch", "SIGNATURE_DOES_NOT_MATCH", "signature we calculated"), "refused the secret key"),
    (("InvalidAccessKeyId", "INVALID_ACCESS_KEY_ID", "access key"), "does not know the access key"),
    (("ACCESS_DENIED", "AccessDenied", "Access Denied", "Forbidden", "HTTP response code 403"), "denied access"),
    (("NoCredentials", "Unable to locate credentials"), "needs credentials, and none were found"),
)


@contextlib.contextmanager
def storage_errors(uri: str, storage: Storage) -> Iterator[None]:
    """Turn what the two S3 clients raise about credentials, buckets and connections into one sentence about `uri`.

    Raises InputError. A missing object stays FileNotFoundError, since the caller knows what it was for.
    """
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error) or "NO_SUCH_BUCKET" in str(error) or "bucket does not exist" in str(error):
            raise InputError(f"the bucket of {uri} does not exist; create it or correct the name.") from None
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith(
            ("botocore", "aiobotocore", "aiohttp")
        ):
            raise
        raise storage_error(uri, storage, error) from None


def storage_error(uri: str, storage: Storage, error: Exception) -> InputError:
    """The sentence for an error of either client."""
    where = endpoint_of(storage) or "AWS S3"
    text = f"{type(error).__name__}: {error}"
    if is_s3(uri):
        if "NoSuchBucket" in text or "NO_SUCH_BUCKET" in text:
            return InputError(f"the bucket of {uri} does not exist at {where}; create it or correct the name.")
        for marks, said in _MARKS:
            if any(mark in text for mark in marks):
                return InputError(f"{where} {said} for {uri}; {CREDENTIALS_HINT} that may use this bucket.")
        if any(
            mark in text
            for mark in ("NETWORK_CONNECTION", "Connect", "timed out", "Timeout", "curlCode", "Could not connect")
        ):
            return InputError(
                f"{where} cannot be reached for {uri}; start it, or set storage.endpoint "
                "(or AWS_ENDPOINT_URL) to where it is."
            )
    return InputError(f"{uri} cannot be used: {str(error).splitlines()[0] if str(error) else type(error).__name__}.")
