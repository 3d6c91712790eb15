"""Free ports for local servers."""

import random
import socket

LOOPBACK = "127.0.0.1"
GRPC_OFFSET = 10_000
# Above Ray's worker ports (10002-19999) and, with GRPC_OFFSET added, below Linux's ephemeral ports (from 32768).
FIRST_PORT = 20_000
LAST_PORT = 22_767


def free_ports(count: int) -> range:
    """Find `count` consecutive free ports such that those GRPC_OFFSET above them are free as well.

    The block starts at a random port, so that concurrent callers hardly ever get the same one.

    Raises:
        OSError: there is no such block between FIRST_PORT and LAST_PORT.
    """
    starts = list(range(FIRST_PORT, LAST_PORT - count + 2))
    random.SystemRandom().shuffle(starts)
    for start in starts:
        block = range(start, start + count)
        if all(_is_free(port) and _is_free(port + GRPC_OFFSET) for port in block):
            return block
    raise OSError(f"no block of {count} free ports between {FIRST_PORT} and {LAST_PORT}: end some local servers first")


def first_free_port(port: int) -> int:
    """`port`, or the next one that is free."""
    return next(each for each in range(port, 2**16) if _is_free(each))


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("", port))  # every address: a Ray head listens on the machine's own as well
        except OSError:
            return False
    return True
