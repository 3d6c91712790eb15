"""A real Ray cluster on several hosts of one machine, whose nodes can be killed, cut off, drained and restarted."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from histill.errors import HistillError
from histill.local.processes import run_server
from histill.local.ray_head import RayHead, ask_dashboard, base_environment, token_environment, write_token
from testbed.hosts import Host, Network

GCS_PORT, DASHBOARD_PORT = 6379, 8265
QUICK = {
    # detect a lost node in seconds instead of half a minute
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # tasks on a disconnected node fail as soon as it is found dead
    "RAY_grpc_client_keepalive_time_ms": "3000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
}
_POLL_S = 0.2
_DISK_MB = 256
_FILLER = "filler"
Share = Callable[[Host], AbstractContextManager[Sequence[str]]]


@dataclass
class Node:
    """A node, which may be started and killed repeatedly."""

    host: Host
    command: list[str]
    env: Mapping[str, str]
    folder: Path
    _stack: ExitStack = field(default_factory=ExitStack)
    _leader: int = 0
    _disk: Path = Path()

    def start(self) -> None:
        """Start the node without waiting for it to join."""
        temp = Path(tempfile.mkdtemp(prefix="histill-"))  # Unix sockets below it: 107 bytes at most
        self._stack.callback(shutil.rmtree, temp, ignore_errors=True)  # once the disk in it is unmounted
        self._mount(temp / "disk")
        env = {**self.env, "TMPDIR": str(temp / "disk"), "HISTILL_NODE": self.host.name}
        command = [*self.command, f"--temp-dir={temp}"]
        process = self._stack.enter_context(
            run_server(
                self.host.command(*command),
                log=self.folder / f"{self.host.name}.log",
                env=env,
                cwd=self.folder,
                scratch=[temp],
                grace_s=5.0,
            )
        )
        self._leader = process.pid

    def _mount(self, disk: Path) -> None:
        """Mount a separate disk for the node's temporary files, small enough to be filled."""
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "histill", str(disk)], check=True)
        self._stack.callback(subprocess.run, ["umount", "--lazy", str(disk)], check=True)
        self._disk = disk

    def fill_disk(self) -> None:
        """Fill the node's disk for temporary files."""
        with suppress(OSError), open(self._disk / _FILLER, "wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def free_disk(self) -> None:
        """Undo `fill_disk`."""
        (self._disk / _FILLER).unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL the raylet and all other processes of the node, as if the machine were gone."""
        for pid in self.host.pids():
            _signal(pid, signal.SIGKILL)
        self._stack.close()

    def terminate(self) -> None:
        """SIGTERM `ray start`, as Kubernetes does for a terminating pod; it drains its node first."""
        _signal(self._leader, signal.SIGTERM)

    def take_leave(self, seconds: int) -> "subprocess.Popen[bytes]":
        """Drain the node, as its watcher does when the cloud has given notice of `seconds`."""
        command = self.host.command(sys.executable, "-m", "histill.cluster.drain", str(seconds))
        with open(self.folder / f"{self.host.name}.log", "ab") as log:
            return subprocess.Popen(command, env=dict(self.env), cwd=self.folder, stdout=log, stderr=subprocess.STDOUT)

    def named(self, part: str) -> list[int]:
        """The node's processes whose command line contains `part`."""
        return [pid for pid in self.host.pids() if part in _command_line(pid)]

    def close(self) -> None:
        """End the node's remaining processes."""
        self._stack.close()


@dataclass(frozen=True)
class RayCluster:
    """A head without workers, and worker nodes."""

    head: RayHead
    head_node: Node
    nodes: tuple[Node, ...]

    def environment(self) -> dict[str, str]:
        """The environment variables with which `ray job submit` reaches the cluster from outside."""
        return self.head.environment()

    def alive(self) -> list[str] | None:
        """The addresses of the nodes that Ray reports alive, including the head; None: it did not answer."""
        answer = ask_dashboard(self.head, "/nodes?view=summary")
        if answer is None:
            return None
        return [
            each["raylet"]["nodeManagerAddress"]
            for each in answer["data"]["summary"]
            if each.get("raylet", {}).get("state") == "ALIVE"
        ]

    def wait_for(self, *nodes: Node, alive: bool = True, timeout_s: float = 120.0) -> None:
        """Wait until Ray reports each of `nodes` alive, or dead. Raises HistillError on timeout."""
        deadline = time.monotonic() + timeout_s
        while True:
            known = self.alive()
            if known is not None and all((node.host.address in known) is alive for node in nodes):
                return
            if time.monotonic() > deadline:
                raise HistillError(
                    f"of {[node.host.name for node in nodes]} not all are {'up' if alive else 'down'}",
                    code="testbed-failed",
                )
            time.sleep(_POLL_S)


@contextmanager
def ray_cluster(
    net: Network,
    folder: Path,
    *,
    cpus: float = 1,
    env: Mapping[str, str] | None = None,
    joining: int | None = None,
    notice_s: int = 0,
    share: Share | None = None,
) -> Iterator[RayCluster]:
    """Run a cluster on `net` until the block is left: the head on its first host, a worker node on each other one.

    Args:
        folder: gets the nodes' logs and the token.
        cpus: CPUs of each worker node; the head has none.
        env: environment variables for Ray and all its workers, such as the credentials of the object store.
        joining: how many worker nodes join at once; the others wait for `start`. None: all.
        notice_s: seconds that a terminated node drains.
        share: context that the node's processes are started under, such as `cpu_share`.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / "ray_token"
    write_token(token)
    first, *others = net.hosts
    address = f"{first.address}:{GCS_PORT}"
    head = RayHead(address, f"http://{first.address}:{DASHBOARD_PORT}", token)
    whole = {
        **base_environment(),
        **QUICK,
        "GLOO_SOCKET_IFNAME": "eth0",  # by default it binds the loopback, which no other host reaches
        "RAY_ADDRESS": address,  # hosts see each other's processes, by which Ray would find a cluster
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(notice_s),
        **(env or {}),
        **token_environment(token),
    }
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    with ExitStack() as stack:

        def node(host: Host, arguments: Sequence[str]) -> Node:
            under = [] if share is None else stack.enter_context(share(host))
            each = Node(host, [*under, *start, f"--node-ip-address={host.address}", *arguments], whole, folder)
            stack.callback(each.close)
            return each

        head_arguments = ["--head", "--num-cpus=0", f"--port={GCS_PORT}", f"--dashboard-host={first.address}"]
        head_node = node(first, head_arguments)
        nodes = tuple(node(host, [f"--address={address}", f"--num-cpus={cpus:g}"]) for host in others)
        head_node.start()
        cluster = RayCluster(head, head_node, nodes)
        cluster.wait_for(head_node)
        begun = nodes[: len(nodes) if joining is None else joining]
        for each in begun:
            each.start()
        cluster.wait_for(*begun)
        yield cluster


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
