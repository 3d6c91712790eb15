"""The leave that a node takes: what the command does, with the cluster and the draining replaced."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.util.state

from histill.cluster import notice
from histill.cluster.notice import main, take_leave

pytestmark = pytest.mark.unit

CODE = "import sys; from histill.cluster import notice; sys.exit(notice.main(sys.argv[1:]))"


@pytest.mark.parametrize(
    "arguments",
    [[], ["soon"], ["-5"], ["1.5"], ["90", "--"], ["90", "ray", "start"], ["--", "ray"], ["x", "--", "true"]],
)
def test_other_arguments_are_answered_with_how_to_use_it(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("take_leave", "run"):
        monkeypatch.setattr(notice, name, lambda *_: pytest.fail("begun"))
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "python -m histill.cluster.notice 90 -- ray start" in said.err


def test_the_seconds_and_the_command_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(notice, "take_leave", asked.append)
    monkeypatch.setattr(notice, "run", lambda *arguments: asked.append(arguments) or 3)
    assert main(["90"]) == 0
    assert main(["5", "--", "ray", "start", "--block", "--", "-x"]) == 3
    assert asked == [90, (5, ["ray", "start", "--block", "--", "-x"])]


@pytest.mark.parametrize("status", [0, 7])
def test_the_commands_exit_status_is_passed_on(status: int) -> None:
    inner = [sys.executable, "-c", f"raise SystemExit({status})"]
    assert subprocess.run([sys.executable, "-c", CODE, "90", "--", *inner], check=False).returncode == status


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


NODE = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def end(*_):
    folder.joinpath("ended").touch()
    sys.exit(5)
signal.signal(signal.SIGTERM, end)
folder.joinpath("pid").write_text(str(os.getpid()))
while True:
    time.sleep(0.02)
"""
# stands for the process that drains the node; notes what it is asked, and whether the node is there meanwhile
DRAIN = """#!/bin/sh
cd {folder}
while [ ! -e go ]; do sleep 0.02; [ -e draining ] || touch draining; done
kill -0 $(cat pid) && [ ! -e ended ] && echo "$@" > asked
exit {status}
"""


@pytest.mark.parametrize("status", [0, 1], ids=["drained", "not drained"])
def test_a_node_that_is_sent_sigterm_takes_leave_and_is_ended_whatever_comes_of_it(tmp_path: Path, status: int) -> None:
    drain = tmp_path / "drain"
    drain.write_text(DRAIN.format(folder=tmp_path, status=status))
    drain.chmod(0o755)
    code = CODE.replace("sys.exit", f"sys.executable = {str(drain)!r}; sys.exit")
    node = [sys.executable, "-c", NODE, str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-c", code, "90", "--", *node])
    try:
        wait_for((tmp_path / "pid").exists)
        wait_for(lambda: caught(process.pid, signal.SIGTERM))
        process.terminate()
        wait_for((tmp_path / "draining").exists)
        process.terminate()  # patience: once is enough
        wait_for(lambda: not caught(process.pid, signal.SIGTERM))
        (tmp_path / "go").touch()
        assert process.wait(60) == 5
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "asked").read_text().split() == ["-m", "histill.cluster.notice", "90"]
    assert (tmp_path / "ended").exists()


def caught(pid: int, number: int) -> bool:
    """Whether the process handles the signal by itself."""
    (mask,) = [line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigCgt" in line]
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A cluster on whose node workers train until the clock says `busy_until`; notes what it is asked."""
    asked = SimpleNamespace(now=0.0, busy_until=0.0, commands=[], addresses=[], filters=[], left=0)
    context = SimpleNamespace(get_node_id=lambda: "a1" * 28, gcs_address="10.0.0.1:6379")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda address, **_: asked.addresses.append(address))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "shutdown", lambda: setattr(asked, "left", asked.left + 1))

    def list_actors(filters: Any) -> list[str]:
        asked.filters.append(filters)
        return ["a worker"] if asked.now < asked.busy_until else []

    def sleep(seconds: float) -> None:
        asked.now += seconds

    def run(command: list[str], *, check: bool, **_: Any) -> None:
        assert check  # what is not drained is no leave
        asked.commands.append(command)

    monkeypatch.setattr(ray.util.state, "list_actors", list_actors)
    monkeypatch.setattr(notice, "time", SimpleNamespace(monotonic=lambda: asked.now, sleep=sleep))
    monkeypatch.setattr(notice.subprocess, "run", run)
    return asked


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve, which comes with the command line
def test_this_node_is_drained_as_one_that_is_taken_away(cluster: SimpleNamespace) -> None:
    from ray.scripts.scripts import cli

    take_leave(90)
    (command,) = cluster.commands
    assert command[:4] == [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    given = cli.commands["drain-node"].make_context("drain-node", command[4:]).params  # as Ray's own command reads it
    assert given["address"] == "10.0.0.1:6379"
    assert given["node_id"] == "a1" * 28
    assert given["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert given["deadline_remaining_seconds"] == 90
    assert given["reason_message"]
    assert cluster.addresses == ["auto"]
    assert cluster.left == 1


def test_the_cluster_is_that_of_the_environment(cluster: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    take_leave(90)
    assert cluster.addresses == ["10.0.0.9:6379"]


@pytest.mark.parametrize(("busy_until", "waited"), [(0, 0), (20, 20), (95, 95), (1e9, 100)])
def test_it_ends_when_nothing_trains_there_or_a_little_after_the_time_is_up(
    cluster: SimpleNamespace, busy_until: float, waited: float
) -> None:
    cluster.busy_until = busy_until
    take_leave(90)
    assert waited <= cluster.now <= waited + 1
    named = {key: value for filters in cluster.filters for key, _, value in filters}
    assert named == {"node_id": "a1" * 28, "class_name": "RayTrainWorker", "state": "ALIVE"}
    assert os.environ.get("RAY_ADDRESS") is None
