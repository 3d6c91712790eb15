"""Several hosts on one machine: network namespaces with an address each, for a cluster whose nodes can be lost.

Needs root and iproute2. Servers bound to `Network.outside` are reachable from every host; each host has its own
loopback.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from histill.errors import HistillError

_PERIOD_US = 100_000
_CPU_GROUPS = Path("/sys/fs/cgroup/cpu")  # of cgroup v1


@dataclass(frozen=True)
class Host:
    """One host: its namespace, its address on eth0, and the bridge end of its veth pair."""

    name: str
    address: str
    cable: str

    def command(self, *command: str) -> list[str]:
        """The command line that runs `command` on this host."""
        return ["ip", "netns", "exec", self.name, *command]

    def cut(self) -> None:
        """Disconnect the host."""
        _ip("link", "set", self.cable, "down")

    def mend(self) -> None:
        """Reconnect the host."""
        _ip("link", "set", self.cable, "up")

    def pids(self) -> list[int]:
        """The host's processes."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in found.stdout.split()]


@dataclass(frozen=True)
class Network:
    """Hosts, and the address of the machine outside of them."""

    outside: str
    hosts: tuple[Host, ...]


def missing() -> str | None:
    """Why hosts cannot be created on this machine; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip` (iproute2)"
    name = f"hx{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return "this machine makes no network namespaces"
    _ip("netns", "del", name)
    return None


@contextmanager
def network(count: int) -> Iterator[Network]:
    """Create `count` hosts until the block is left. Callers must end what they started on them before.

    Raises HistillError when this machine cannot have any.
    """
    if (why := missing()) is not None:
        raise HistillError(f"{why}; run this as root on Linux with iproute2.", code="testbed-failed")
    number = _free_number()
    bridge, outside = f"hb{number}", f"10.77.{number}.254"
    hosts = tuple(
        Host(f"hx{number}-{each}", f"10.77.{number}.{each + 1}", f"hv{number}-{each}") for each in range(count)
    )
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{outside}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for host in hosts:
            _ip("netns", "add", host.name)
            _ip("link", "add", host.cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("link", "set", host.cable, "master", bridge, "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
            _ip("-n", host.name, "route", "add", "default", "via", outside)
        yield Network(outside, hosts)
    finally:
        for host in hosts:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", host.name)
            with suppress(subprocess.CalledProcessError):
                _ip("link", "del", host.cable)
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", bridge)


@contextmanager
def cpu_share(name: str, cpus: float, period_us: int = _PERIOD_US) -> Iterator[Sequence[str]]:
    """A command prefix that limits the processes together to `cpus` CPUs, while the block lasts.

    Processes that have used up their share of a period stall until its end: a short period avoids waits between
    processes that synchronize at every step, a long one has less overhead.

    Raises HistillError when the machine has no writable cgroup v1 for CPUs.
    """
    group = _CPU_GROUPS / f"histill-{os.getpid()}-{name}"
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text(str(period_us))
        (group / "cpu.cfs_quota_us").write_text(str(int(cpus * period_us)))
    except OSError as error:
        raise HistillError(
            f"CPU shares cannot be fixed at {group} ({error.strerror}); run this as root.", code="testbed-failed"
        ) from None
    # `ip netns exec` mounts another /sys without cgroups; they are reached through this process.
    seen = f"/proc/{os.getpid()}/root{group}"
    try:
        yield ["sh", "-c", f'echo $$ > {seen}/cgroup.procs && exec "$@"', "sh"]
    finally:
        with suppress(OSError):  # busy while one of them is still ending
            group.rmdir()


def _free_number() -> int:
    used = subprocess.run(["ip", "-o", "-4", "addr"], capture_output=True, text=True, check=True).stdout
    return next(number for number in range(os.getpid() % 200, 255) if f" 10.77.{number}.254/" not in used)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
