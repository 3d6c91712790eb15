"""The fault proxy in front of a small HTTP server: what passes is unchanged, and every fault is what it says."""

import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from testbed.fault_proxy import KINDS, FaultProxy, Faults, Kind, fault_proxy

pytestmark = pytest.mark.unit

BODY = np.random.default_rng(0).bytes(1_000_000)


class Echo(BaseHTTPRequestHandler):
    """GET answers BODY, in chunks below /chunked; PUT answers the Host header and the body that came."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path.startswith("/chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(BODY), 300_000):
                part = BODY[start : start + 300_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()

    def do_PUT(self) -> None:
        answer = self.headers["Host"].encode() + self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        server.block_on_close = False
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        serving.join()


def connected(proxy: FaultProxy) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=20)


def get(proxy: FaultProxy, path: str = "/a") -> bytes:
    client = connected(proxy)
    try:
        client.request("GET", path)
        return client.getresponse().read()
    finally:
        client.close()


def test_messages_pass_unchanged_on_one_connection(target: str) -> None:
    with fault_proxy(target, Faults(rate=0.0)) as proxy:
        client = connected(proxy)
        for path in ("/a", "/chunked", "/a"):
            client.request("GET", path)
            assert client.getresponse().read() == BODY
        client.request("HEAD", "/a")
        head = client.getresponse()
        assert head.headers["Content-Length"] == str(len(BODY))
        assert head.read() == b""
        first = client.sock
        client.request("PUT", "/b", BODY, {"Host": "signed.example:1234"})
        assert client.getresponse().read() == b"signed.example:1234" + BODY
        assert client.sock is first  # kept alive
        client.close()
        assert proxy.counts["requests"] == 5
        assert proxy.counts["gets"] == 3
        assert 4 * len(BODY) < proxy.counts["bytes"] < 4 * len(BODY) + 100
        assert not any(proxy.counts[kind] for kind in KINDS)


def test_a_body_waits_for_leave_if_the_client_asks(target: str) -> None:
    with fault_proxy(target, Faults(rate=0.0)) as proxy:
        client = connected(proxy)
        client.connect()
        client.sock.sendall(b"PUT /b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert client.sock.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sock.sendall(b"abc")
        answer = b""
        while part := client.sock.recv(100):
            answer += part
        assert answer.endswith(b"\r\n\r\nhabc")
        client.close()


def test_slow_down_leaves_the_connection_usable(target: str) -> None:
    with fault_proxy(target, Faults(rate=1.0, kinds=("503",))) as proxy:
        client = connected(proxy)
        client.request("PUT", "/b", BODY)
        answer = client.getresponse()
        assert answer.status == 503
        assert b"<Code>SlowDown</Code>" in answer.read()
        proxy.rate = 0.0
        client.request("GET", "/a")
        assert client.getresponse().read() == BODY
        client.close()
        assert proxy.counts["503"] == 1


def test_a_short_body_keeps_its_promised_length(target: str) -> None:
    with fault_proxy(target, Faults(rate=1.0, kinds=("short",))) as proxy:
        with pytest.raises(http.client.IncompleteRead) as caught:
            get(proxy)
        assert len(caught.value.partial) + (caught.value.expected or 0) == len(BODY)
        assert BODY.startswith(caught.value.partial)
        assert proxy.counts["short"] == 1
        assert proxy.counts["bytes"] == len(caught.value.partial)


@pytest.mark.parametrize("path", ["/a", "/chunked"])
def test_a_reset_is_one(target: str, path: str) -> None:
    with fault_proxy(target, Faults(rate=1.0, kinds=("reset",))) as proxy:
        with pytest.raises(ConnectionResetError):
            get(proxy, path)
        assert proxy.counts["reset"] == 1


def test_a_stall_is_silent_and_then_closes(target: str) -> None:
    with fault_proxy(target, Faults(rate=1.0, kinds=("stall",), stall_s=0.3)) as proxy:
        began = time.monotonic()
        with pytest.raises(http.client.IncompleteRead):
            get(proxy)
        assert time.monotonic() - began >= 0.3


def test_only_what_matches_is_hit(target: str) -> None:
    with fault_proxy(target, Faults(rate=1.0, kinds=("503",), match=r"^GET /shards/.*\.parquet")) as proxy:
        assert get(proxy, "/a") == BODY
        assert b"SlowDown" in get(proxy, "/shards/1.parquet?x=1")
        client = connected(proxy)
        client.request("PUT", "/shards/1.parquet", b"abc")
        assert client.getresponse().status == 200
        client.close()


def test_the_draws_depend_on_the_seed_and_the_requests_and_not_on_their_order(target: str) -> None:
    def drawn(seed: int, paths: list[str]) -> dict[str, list[tuple[Kind | None, float]]]:
        proxy = FaultProxy(target, Faults(rate=0.3, seed=seed))
        found: dict[str, list[tuple[Kind | None, float]]] = {}
        for path in paths:
            found.setdefault(path, []).append(proxy.draw("GET", path, "bytes=0-9"))
        return found

    paths = [f"/{number % 500}" for number in range(2000)]
    first = drawn(0, paths)
    assert drawn(0, sorted(paths)) == first
    assert drawn(1, paths) != first
    kinds = [kind for draws in first.values() for kind, _ in draws]
    assert 0.25 < 1 - kinds.count(None) / len(kinds) < 0.35
    for kind in KINDS:
        assert 0.05 < kinds.count(kind) / len(kinds) < 0.10
    assert len({draws[0] for draws in first.values()}) > 100  # a repeated request is drawn anew


def test_many_clients_at_once(target: str) -> None:
    with fault_proxy(target, Faults(rate=0.0)) as proxy, ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda number: get(proxy, f"/{number}"), range(64))) == {BODY}
        assert proxy.counts["requests"] == 64


def test_nothing_is_left_when_clients_stay_or_stall(target: str) -> None:
    before = set(threading.enumerate())
    with fault_proxy(target, Faults(rate=1.0, kinds=("stall",), stall_s=600, match="stalled")) as proxy:
        idle, stalled = connected(proxy), connected(proxy)
        idle.request("GET", "/a")
        idle.getresponse().read()
        stalled.request("GET", "/stalled")
        answer = stalled.getresponse()
        assert "fault-proxy" in {thread.name for thread in threading.enumerate()}
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    for thread in set(threading.enumerate()) - before:  # the proxy's have ended; the target's end with their clients
        thread.join(timeout=10)
    assert set(threading.enumerate()) <= before
    with pytest.raises(ConnectionRefusedError):
        connected(proxy).connect()
    idle.close()
    stalled.close()


def test_a_server_that_is_not_there_ends_the_connection(target: str) -> None:
    with fault_proxy("http://127.0.0.1:1", Faults(rate=0.0)) as proxy, pytest.raises(http.client.RemoteDisconnected):
        get(proxy)


@pytest.mark.parametrize("endpoint", ["https://127.0.0.1:1", "127.0.0.1:1", "http://127.0.0.1"])
def test_the_target_must_be_a_plain_address(endpoint: str) -> None:
    with pytest.raises(ValueError, match="http://host:port"), fault_proxy(endpoint):
        pass


def test_each_request_is_heard_and_the_host_becomes_the_targets(target: str) -> None:
    heard: list[str] = []
    with fault_proxy(target, Faults(rate=0), rewrite_host=True) as proxy:
        proxy.heard = heard.append
        connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"))
        connection.request("PUT", "/a?b=c", b"body")
        assert connection.getresponse().read() == target.removeprefix("http://").encode() + b"body"
        connection.close()
    assert heard == ["PUT /a?b=c"]
