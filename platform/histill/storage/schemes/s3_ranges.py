"""Read a byte range of an S3 object by one request, into memory that is allocated once.

pyarrow's client asks for an object's size before each first read, and its Python interface has no way to say it. This
one signs with botocore's signer and reads with the standard library's HTTP client: half the CPU of pyarrow's for a row
group of 5 MB (docs/results/scaling.md). It makes no attempt to understand what goes wrong: whoever calls it reads by
pyarrow's client then, which retries, and whose errors are explained.
"""

import contextlib
import http.client
import os
import ssl
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import pyarrow as pa
import xxhash

from histill.config.common import Storage
from histill.storage.schemes.s3 import endpoint_of, keys_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNSIGNED = "UNSIGNED-PAYLOAD"  # there is no payload
_REGION = "us-east-1"


class RangeReader:
    """Reads ranges of the objects of one bucket. Safe across threads; the connections are kept."""

    def __init__(self, endpoint: str, region: str, credentials: Any, storage: Storage) -> None:
        self._url, self._region, self._credentials, self._storage = urlsplit(endpoint), region, credentials, storage
        self._idle: list[http.client.HTTPConnection] = []
        self._lock, self._process = threading.Lock(), os.getpid()
        self._tls = None
        if self._url.scheme == "https":
            self._tls = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))

    def __call__(self, path: str, start: int, length: int) -> tuple[pa.Buffer, int]:
        """The `length` bytes from `start` on of the object `path` (bucket/key), and a number of the object's version.

        Raises OSError for everything else than these bytes.
        """
        target = f"{self._url.path.rstrip('/')}/{quote(path, safe='/~')}"
        headers = self._sign(target, f"bytes={start}-{start + length - 1}")
        with self._connection() as connection:
            try:
                reply = self._ask(connection, target, headers)
                if reply.status != http.client.PARTIAL_CONTENT or reply.length != length:
                    raise OSError(f"HTTP status {reply.status}")
                buffer = pa.allocate_buffer(length)
                _fill(memoryview(buffer), reply)
                return buffer, xxhash.xxh3_64_intdigest(reply.headers.get("ETag", ""))
            except http.client.HTTPException as error:
                raise ConnectionError(type(error).__name__) from None

    def _sign(self, target: str, byte_range: str) -> dict[str, str]:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        url = f"{self._url.scheme}://{self._url.netloc}{target}"
        request = AWSRequest("GET", url, headers={"Range": byte_range, "X-Amz-Content-SHA256": _UNSIGNED})
        S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self._region).add_auth(request)
        return dict(request.headers.items())

    @contextlib.contextmanager
    def _connection(self) -> "Iterator[http.client.HTTPConnection]":
        """A connection, which is kept for the next range unless something goes wrong."""
        with self._lock:
            if self._process != os.getpid():  # a fork, whose parent uses the connections
                self._idle, self._process = [], os.getpid()
            connection = self._idle.pop() if self._idle else self._new()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._idle.append(connection)

    def _new(self) -> http.client.HTTPConnection:
        host, port, timeout = self._url.hostname or "", self._url.port, self._storage.connect_timeout_s
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=timeout)

    def _ask(
        self, connection: http.client.HTTPConnection, target: str, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        kept = connection.sock is not None
        try:
            return self._ask_once(connection, target, headers)
        except (ConnectionError, http.client.BadStatusLine):
            if not kept:
                raise
            connection.close()  # the server has closed it since
            return self._ask_once(connection, target, headers)

    def _ask_once(
        self, connection: http.client.HTTPConnection, target: str, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        if connection.sock is None:
            connection.connect()
            assert connection.sock is not None
            connection.sock.settimeout(self._storage.request_timeout_s)
        connection.request("GET", target, headers=headers)
        return connection.getresponse()


def open_ranges(uri: str, storage: Storage) -> RangeReader | None:
    """The reader of ranges of the objects in the bucket of `uri`; None without credentials, and through a proxy."""
    import botocore.session
    from botocore.credentials import Credentials
    from botocore.exceptions import BotoCoreError

    session = botocore.session.Session()
    region = storage.region or session.get_config_variable("region") or _REGION
    try:
        endpoint = endpoint_of(storage) or session.create_client("s3", region_name=region).meta.endpoint_url
        keys = keys_of(uri, storage)
        credentials = Credentials(*keys) if keys is not None else session.get_credentials()
    except (BotoCoreError, ValueError):
        return None
    url = urlsplit(endpoint)
    proxied = url.scheme in getproxies() and not proxy_bypass(url.hostname or "")
    return None if credentials is None or proxied else RangeReader(endpoint, region, credentials, storage)


def _fill(view: memoryview, reply: http.client.HTTPResponse) -> None:
    """Read the body into `view`. Raises ConnectionError when it is shorter."""
    done = 0
    while done < len(view):
        count = reply.readinto(view[done:])
        if not count:
            raise ConnectionError(f"the body ended after {done} of {len(view)} bytes")
        done += count
    reply.read()  # nothing is left; the connection can be used again
