"""A whole site on one machine: a Ray cluster of several hosts, S3 and MLflow outside of it, a user at a console."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from histill.local.s3 import Identity, S3Server, s3_server
from histill.local.tracking import TrackingServer, mlflow_server
from testbed.hosts import network
from testbed.ray_cluster import RayCluster, Share, ray_cluster

ROOT = Path(__file__).parents[1]
BUCKET = "site"
_RAY_JOB = (sys.executable, "-m", "ray.scripts.scripts", "job")


class Server:
    """A server that can be stopped and restarted at the same address with the same content."""

    def __init__(self, start: Callable[[], AbstractContextManager[object]]) -> None:
        self._start = start
        self._stack = ExitStack()
        self._stack.enter_context(start())

    def stop(self) -> None:
        """Stop the server."""
        self._stack.close()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._stack.enter_context(self._start())


@dataclass(frozen=True)
class Site:
    """The running servers and cluster, and how a user reaches them."""

    folder: Path
    cluster: RayCluster
    s3: S3Server
    s3_process: Server
    tracking: TrackingServer
    tracking_process: Server

    def environment(self) -> dict[str, str]:
        """The environment of the user's console: the cluster's job server and its token, but nothing of S3."""
        mine = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_", "MLFLOW_"))}
        return mine | self.cluster.environment()

    def submit(
        self,
        script: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        submission: str | None = None,
    ) -> "subprocess.Popen[str]":
        """Run `ray job submit` for a job of this checkout, from outside the cluster.

        Args:
            env: environment variables of the job itself.
            log: file to append the command's output to; None: a pipe.
            submission: submission id, for `stop`.
        """
        runtime = json.dumps({"py_modules": ["platform/histill"], "env_vars": dict(env or {})})
        named = [] if submission is None else [f"--submission-id={submission}"]
        command = [*_RAY_JOB, "submit", *named, "--working-dir", ".", "--runtime-env-json", runtime, "--", "python"]
        with ExitStack() as opened:
            return subprocess.Popen(
                [*command, script, *arguments],
                cwd=ROOT,
                env=self.environment(),
                stdout=subprocess.PIPE if log is None else opened.enter_context(log.open("a")),
                stderr=subprocess.STDOUT,
                text=True,
            )

    def stop(self, submission: str) -> None:
        """Run `ray job stop`, for a job whose console is gone or no longer read."""
        command = [*_RAY_JOB, "stop", submission]
        subprocess.run(command, cwd=ROOT, env=self.environment(), capture_output=True, timeout=120)


@contextmanager
def site(
    folder: Path,
    *,
    hosts: int = 3,
    cpus: float = 1,
    joining: int | None = None,
    notice_s: int = 0,
    identities: Sequence[Identity] = (),
    share: Share | None = None,
) -> Iterator[Site]:
    """Run a site in `folder` until the block is left; see `ray_cluster` for the options.

    Raises HistillError when hosts cannot be created.
    """
    with ExitStack() as stack:
        net = stack.enter_context(network(hosts))
        stores, runs = folder / "s3", folder / "mlflow"
        stores.mkdir(parents=True)
        runs.mkdir()
        # Both are started once to get their addresses, and later restarted at these.
        with s3_server(stores, BUCKET, identities, host=net.outside) as s3:
            pass
        s3_process = Server(lambda: s3_server(stores, BUCKET, identities, host=net.outside, earlier=s3))
        stack.callback(s3_process.stop)
        with mlflow_server(runs, host=net.outside) as tracking:
            port = int(tracking.uri.rpartition(":")[2])
        tracking_process = Server(lambda: mlflow_server(runs, port, host=net.outside))
        stack.callback(tracking_process.stop)
        env = {**s3.environment(), "MLFLOW_TRACKING_URI": tracking.uri}
        cluster = stack.enter_context(
            ray_cluster(net, folder / "ray", cpus=cpus, env=env, joining=joining, notice_s=notice_s, share=share)
        )
        yield Site(folder, cluster, s3, s3_process, tracking, tracking_process)
