"""Free ports for local servers."""

import random
import socket

LOOPBACK = "127.0.0.1"
GRPC_OFFSET = 10_000
# Above the ports that Ray gives to its workers (10002-19999); with GRPC_OFFSET added still below the range
# from which Linux takes the ports of outgoing connections (from 32768).
FIRST_PORT = 20_000
LAST_PORT = 22_767


def free_ports(count: int) -> range:
    """Find `count` consecutive ports that are free, as are the ports GRPC_OFFSET above them.

    The block starts at a random place, so that two callers at the same time hardly ever get the same one.

    Raises:
        OSError: no such block is left between FIRST_PORT and LAST_PORT.
    """
    starts = list(range(FIRST_PORT, LAST_PORT - count + 2))
    random.SystemRandom().shuffle(starts)
    for start in starts:
        block = range(start, start + count)
        if all(_is_free(port) and _is_free(port + GRPC_OFFSET) for port in block):
            return block
    raise OSError(f"no block of {count} free ports between {FIRST_PORT} and {LAST_PORT}: end some local servers first")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("", port))  # every address: a Ray head listens on the machine's own as well
        except OSError:
            return False
    return True
