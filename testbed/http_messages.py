"""As much of HTTP/1.1 as it takes to find the end of a message, for forwarding messages byte for byte."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from typing import Literal

_LINE = 1 << 16

Size = int | Literal["chunked", "rest"]
"""How a body ends: after so many bytes, with its last chunk, or with the connection."""


@dataclass(frozen=True)
class Head:
    """The words of a request's or reply's first line, its header fields by lower-case name, and their raw bytes."""

    first: tuple[str, ...]
    fields: dict[str, str]
    raw: bytes

    @property
    def closes(self) -> bool:
        """Whether the connection ends with this message."""
        return self.fields.get("connection", "").lower() == "close"


def read_head(file: BufferedReader) -> Head | None:
    """Read the next message's head; None if the connection ended. Raises ValueError when it is not HTTP."""
    lines = [file.readline(_LINE)]
    while lines[-1] not in (b"\r\n", b""):
        lines.append(file.readline(_LINE))
    if lines[-1] == b"":
        return None
    words, *rest = (line.decode("latin-1").rstrip("\r\n") for line in lines[:-1])
    first = tuple(words.split(" ", 2))
    if len(first) < 2:
        raise ValueError("a message of HTTP begins with a line of at least two words")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return Head(first, fields, b"".join(lines))


def body_size(head: Head, none: Size = "rest") -> Size:
    """The size of the body that follows; `none` when the head says nothing about it."""
    if "chunked" in head.fields.get("transfer-encoding", "").lower():
        return "chunked"
    length = head.fields.get("content-length")
    return none if length is None else int(length)


def pass_on(source: BufferedReader, send: Callable[[memoryview], object], size: Size, buffer: memoryview) -> None:
    """Forward a body as it arrives, through `buffer`, including chunk framing.

    Raises ConnectionError when the body ends early.
    """
    if size != "chunked":
        _pass_bytes(source, send, None if size == "rest" else size, buffer)
        return
    left = 1
    while left:
        line = source.readline(_LINE)
        left = int(line.split(b";")[0], 16)
        send(memoryview(line))
        if left:
            _pass_bytes(source, send, left + 2, buffer)
    while True:  # trailers and the empty line
        line = source.readline(_LINE)
        send(memoryview(line))
        if line in (b"\r\n", b""):
            return


def _pass_bytes(
    source: BufferedReader, send: Callable[[memoryview], object], size: int | None, buffer: memoryview
) -> None:
    passed = 0
    while size is None or passed < size:
        got = source.readinto1(buffer if size is None else buffer[: size - passed])
        if not got:
            if size is None:
                break
            raise ConnectionAbortedError("a body ended early")
        send(buffer[:got])
        passed += got
