"""File systems for a URI: pyarrow's for bytes, fsspec's for control files."""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from histill.config.common import Storage
from histill.config.places import read_server
from histill.errors import AwayError, InputError
from histill.storage.retry import passing
from histill.storage.uris import bucket_of, is_s3, local_path

if TYPE_CHECKING:
    import fsspec
    from pyarrow import fs

CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile or role of the AWS chain, or storage.profiles)"
)


def endpoint_of(storage: Storage) -> str | None:
    """The configured S3 endpoint, or the environment's, or None for AWS itself.

    Raises InputError when the environment's is no http(s) address, or holds credentials.
    """
    if storage.endpoint:
        return storage.endpoint
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if given := os.environ.get(name):
            try:
                return read_server(given)
            except ValueError as error:
                raise InputError(f"{name} cannot be used: {error}.") from None
    return None


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
    if (profile := profile_of(uri, storage)) is not None:
        options |= _keys_of(profile)
    return fs.S3FileSystem(**options), arrow_path(uri)


def profile_of(uri: str, storage: Storage) -> str | None:
    """The AWS profile that is named for the bucket of `uri`; None: the usual chain."""
    return storage.profiles.get(bucket_of(uri) or "")


def _keys_of(profile: str) -> dict[str, str]:
    """The keys of an AWS profile, as pyarrow takes them. It knows no profiles, but that of $AWS_PROFILE."""
    import botocore.exceptions
    import botocore.session

    try:
        credentials = botocore.session.Session(profile=profile).get_credentials()
    except botocore.exceptions.ProfileNotFound:
        credentials = None
    if credentials is None:
        raise InputError(
            f"storage.profiles names the AWS profile {profile!r}, and {socket.gethostname()} has none with keys; add "
            "it to ~/.aws/credentials (or $AWS_SHARED_CREDENTIALS_FILE) on every node."
        )
    keys = credentials.get_frozen_credentials()
    if keys.token:
        raise InputError(
            f"storage.profiles names the AWS profile {profile!r}, whose keys on {socket.gethostname()} expire, maybe "
            "in the middle of a run; name one with an access key of its own, or none, and use the node's role."
        )
    return {"access_key": keys.access_key, "secret_key": keys.secret_key}


def arrow_path(uri: str) -> str:
    """The path of `uri` within pyarrow's file system for it."""
    return uri.removeprefix("s3://").rstrip("/") if is_s3(uri) else local_path(uri)


def control_filesystem(uri: str, storage: Storage) -> tuple["fsspec.AbstractFileSystem", str]:
    """fsspec's file system for `uri`, and the path within it."""
    import fsspec

    if not is_s3(uri):
        return fsspec.filesystem("file"), local_path(uri)
    client: dict[str, Any] = {"endpoint_url": endpoint_of(storage)}
    if storage.region:
        client["region_name"] = storage.region
    config = {
        "connect_timeout": storage.connect_timeout_s,
        "read_timeout": storage.request_timeout_s,
        "retries": {"max_attempts": storage.attempts, "mode": "standard"},
    }
    keys: dict[str, Any] = {}
    if (profile := profile_of(uri, storage)) is not None:
        own = _keys_of(profile)
        keys = {"key": own["access_key"], "secret": own["secret_key"]}
    filesystem = fsspec.filesystem(
        "s3", client_kwargs=client, config_kwargs=config, use_listings_cache=False, default_fill_cache=False, **keys
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
            return AwayError(
                f"{where} cannot be reached for {uri}; start it, or set storage.endpoint "
                "(or AWS_ENDPOINT_URL) to where it is."
            )
        if isinstance(error, OSError) and (reason := passing(error)) is not None:
            return AwayError(
                f"{where} does not serve {uri} at present ({reason}); look after the server, and give the same command "
                "again."
            )
    return InputError(f"{uri} cannot be used: {str(error).splitlines()[0] if str(error) else type(error).__name__}.")
