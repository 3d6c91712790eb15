"""A reverse proxy in front of a local S3 server that breaks some of its replies, for tests and benchmarks.

Requests and replies pass byte for byte. The Host header stays as the client wrote it: it is part of the signature that
the server verifies.
"""

import hashlib
import os
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from select import select
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Literal, get_args
from urllib.parse import urlsplit

from histill.local.ports import LOOPBACK
from testbed.http_messages import Head, Size, body_size, pass_on, read_head

Kind = Literal["503", "reset", "stall", "short"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_BLOCK = 1 << 18
_HOST = re.compile(rb"^host:[^\r\n]*", re.IGNORECASE | re.MULTILINE)
_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


@dataclass(frozen=True)
class Faults:
    """Which replies are broken, and how.

    `503` answers SlowDown in place of the server. The others break off the server's reply somewhere in its body:
    `reset` with a TCP reset, `short` with an orderly close although Content-Length promised more, `stall` with
    `stall_s` seconds of silence and then a close. A reply without a body, or a chunked one, breaks off before its
    first byte.

    The draw depends on the seed, the request, and how often the same request was made before, so that the
    same reads get the same faults whatever the order of threads. `match` is a regular expression searched
    for in "METHOD /path?query"; other requests pass unchanged.
    """

    rate: float = 0.05
    kinds: tuple[Kind, ...] = KINDS
    stall_s: float = 5.0
    seed: int = 0
    match: str | None = None


class FaultProxy:
    """A running proxy: `endpoint` is its URL, and `rate` may be set while it runs.

    `heard`, which may be set as well, is called with "METHOD /path?query" of each request before it is forwarded.
    """

    def __init__(self, endpoint: str, faults: Faults) -> None:
        self.endpoint = endpoint
        self.rate = faults.rate
        self.stall_s = faults.stall_s
        self.heard: Callable[[str], None] = lambda _: None
        self._faults = faults
        self._match = None if faults.match is None else re.compile(faults.match)
        self._lock = threading.Lock()
        self._counts = Counter[str](dict.fromkeys(("requests", "gets", "bytes", *KINDS), 0))
        self._seen = Counter[str]()

    @property
    def counts(self) -> dict[str, int]:
        """Counts so far: `requests`, `gets` among them, body `bytes` sent, and the number of each fault."""
        with self._lock:
            return dict(self._counts)

    def draw(self, method: str, target: str, byte_range: str) -> tuple[Kind | None, float]:
        """Count a request; return its fault, and the fraction of the body, in [0, 1), sent before the fault."""
        request = f"{method} {target}"
        self.heard(request)
        with self._lock:
            self._counts["requests"] += 1
            self._counts["gets"] += method == "GET"
            name = f"{request} {byte_range}"
            number = self._seen[name]
            self._seen[name] += 1
            if self._match is not None and not self._match.search(request):
                return None, 0.0
            digest = hashlib.sha256(f"{self._faults.seed} {name} {number}".encode()).digest()
            hit, which, where = (part / 2**32 for part in struct.unpack(">3I", digest[:12]))
            if hit >= self.rate:
                return None, 0.0
            kind = self._faults.kinds[int(which * len(self._faults.kinds))]
            self._counts[kind] += 1
            return kind, where

    def sent(self, size: int) -> None:
        """Count bytes of a reply's body."""
        with self._lock:
            self._counts["bytes"] += size


@contextmanager
def fault_proxy(
    target_endpoint: str, faults: Faults | None = None, *, rewrite_host: bool = False
) -> Iterator[FaultProxy]:
    """Run a proxy on the loopback in front of `target_endpoint` (http://host:port) until the block is left.

    With `rewrite_host` the Host header becomes the target's, for a server that accepts only its own name.

    Its threads run in this process, one per client connection; all have ended when the block is left.

    Raises:
        ValueError: the target is not an http:// URL with a port.
    """
    target = urlsplit(target_endpoint)
    if target.scheme != "http" or target.hostname is None or target.port is None:
        raise ValueError(f"the proxy's target {target_endpoint!r} must be of the form http://host:port.")
    server = _Server((target.hostname, target.port))
    server.host = f"Host: {target.netloc}".encode() if rewrite_host else None
    server.proxy = FaultProxy(f"http://{LOOPBACK}:{server.server_address[1]}", faults or Faults())
    accepting = threading.Thread(target=server.serve_forever, args=(0.05,), name="fault-proxy")
    accepting.start()
    try:
        yield server.proxy
    finally:
        server.shutdown()
        accepting.join()
        server.hang_up()
        server.server_close()


class _Server(ThreadingTCPServer):
    request_queue_size = 128
    proxy: FaultProxy
    host: bytes | None = None  # the Host line that replaces the requests' own

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__((LOOPBACK, 0), _Connection)
        self.target = target
        self._sockets: set[socket.socket] = set()
        self._closing = False
        self._lock = threading.Lock()

    def keep(self, connection: socket.socket) -> None:
        """Register the connection to be closed with the server."""
        with self._lock:
            if self._closing:
                raise ConnectionAbortedError("the proxy is closing")
            self._sockets.add(connection)

    def forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(connection)

    def hang_up(self) -> None:
        """Wake every thread that waits for a connection; `server_close` then waits for the threads."""
        with self._lock:
            self._closing = True
            for connection in self._sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Upstream:
    """The connection to the target that one client's connection uses."""

    def __init__(self, server: _Server) -> None:
        self.socket = socket.create_connection(server.target)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")
        self._server = server
        try:
            server.keep(self.socket)
        except OSError:
            self.close()
            raise

    def is_stale(self) -> bool:
        """Whether the target closed the connection between two requests."""
        return bool(select([self.socket], [], [], 0)[0])

    def close(self) -> None:
        self._server.forget(self.socket)
        self.file.close()
        self.socket.close()


class _Connection(StreamRequestHandler):
    """One client's connection, with sequential requests."""

    server: _Server
    rfile: BufferedReader
    disable_nagle_algorithm = True

    def handle(self) -> None:
        self.upstream: _Upstream | None = None
        self.buffer = memoryview(bytearray(_BLOCK))
        # Either side may disconnect at any time, or not speak HTTP; the proxy then disconnects as well.
        with suppress(OSError, ValueError):
            self.server.keep(self.connection)
            while self._exchange():
                pass

    def finish(self) -> None:
        if self.upstream is not None:
            self.upstream.close()
        self.server.forget(self.connection)
        super().finish()

    def _exchange(self) -> bool:
        """Handle one request and its reply; return whether the connection can be reused."""
        request = read_head(self.rfile)
        if request is None:
            return False
        method, target = request.first[:2]
        kind, where = self.server.proxy.draw(method, target, request.fields.get("range", ""))
        if kind == "503":
            return self._slow_down(request)
        upstream = self._connected()
        host = self.server.host
        upstream.socket.sendall(request.raw if host is None else _HOST.sub(host, request.raw, count=1))
        reply = self._continued(request, upstream) if "expect" in request.fields else None
        if reply is None:
            pass_on(self.rfile, upstream.socket.sendall, body_size(request, none=0), self.buffer)
            reply = self._final_head(upstream)
        if reply is None:
            return False
        size = body_size(reply)
        if method == "HEAD" or reply.first[1] in ("204", "304"):
            size = 0
        if kind is not None:
            self._break_off(kind, where, reply, size, upstream)
            return False
        self.connection.sendall(reply.raw)
        pass_on(upstream.file, self._send, size, self.buffer)
        return size != "rest" and not request.closes and not reply.closes and "expect" not in request.fields

    def _send(self, block: memoryview) -> None:
        """Send a part of a reply's body, counting it first, so that a client that has it all sees it counted."""
        self.server.proxy.sent(len(block))
        self.connection.sendall(block)

    def _connected(self) -> _Upstream:
        if self.upstream is not None and self.upstream.is_stale():
            self.upstream.close()
            self.upstream = None
        if self.upstream is None:
            self.upstream = _Upstream(self.server)
        return self.upstream

    def _continued(self, request: Head, upstream: _Upstream) -> Head | None:
        """Forward the server's 100 Continue to the client; a refusal is returned instead."""
        ready = select([upstream.socket, self.connection], [], [])[0]
        if upstream.socket not in ready:
            return None  # the client does not wait for it
        reply = read_head(upstream.file)
        if reply is None or reply.first[1] != "100":
            return reply
        self.connection.sendall(reply.raw)
        return None

    def _final_head(self, upstream: _Upstream) -> Head | None:
        while (reply := read_head(upstream.file)) is not None and reply.first[1].startswith("1"):
            self.connection.sendall(reply.raw)
        return reply

    def _slow_down(self, request: Head) -> bool:
        waits = "expect" in request.fields
        if not waits:
            pass_on(self.rfile, lambda _: None, body_size(request, none=0), self.buffer)
        last = b"Connection: close\r\n" if waits else b""
        head = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n%s\r\n"
        body = b"" if request.first[0] == "HEAD" else _SLOW_DOWN
        self.connection.sendall(head % (len(_SLOW_DOWN), last) + body)
        return not waits and not request.closes

    def _break_off(self, kind: Kind, where: float, reply: Head, size: Size, upstream: _Upstream) -> None:
        if isinstance(size, int) and size > 0:
            self.connection.sendall(reply.raw)
            pass_on(upstream.file, self._send, int(where * size), self.buffer)
        if kind == "stall":
            self.connection.settimeout(self.server.proxy.stall_s)
            with suppress(TimeoutError):
                self.connection.recv(1)  # ends early when the client or the proxy closes
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # at once: the base class would end it in order first
