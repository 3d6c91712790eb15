"""The leave that a node takes: what the command does, with the cluster and the draining replaced."""

import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from histill.cluster import drain
from histill.cluster.drain import drain_this_node, main
from histill.errors import HistillError

pytestmark = pytest.mark.unit

NODE_ID = "a1" * 28


@pytest.mark.parametrize("arguments", [[], ["soon"], ["-5"], ["1.5"], ["90", "91"]])
def test_other_arguments_are_answered_with_how_to_use_it(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "drain_this_node", lambda *_: pytest.fail("begun"))
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "python -m histill.cluster.drain 90" in said.err


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A cluster with a node here, whose port answers until the clock says `gone_at`; notes what it is asked."""
    asked = SimpleNamespace(now=0.0, gone_at=1e9, commands=[], addresses=[], left=0, status=0, host="127.0.0.1")
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")

    def nodes() -> list[dict[str, Any]]:
        mine = {"NodeID": NODE_ID, "NodeManagerAddress": asked.host, "NodeManagerPort": 7, "Alive": True}
        return [mine | {"NodeID": "b2" * 28, "NodeManagerAddress": "192.0.2.7"}, mine | {"Alive": False}, mine]

    def sleep(seconds: float) -> None:
        asked.now += seconds

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        asked.commands.append(command)
        return SimpleNamespace(returncode=asked.status)

    def connect(address: tuple[str, int], timeout: float) -> SimpleNamespace:
        assert address == (asked.host, 7)
        if asked.now >= asked.gone_at:
            raise ConnectionRefusedError
        return SimpleNamespace(close=lambda: None)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda address, **_: asked.addresses.append(address))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "nodes", nodes)
    monkeypatch.setattr(ray, "shutdown", lambda: setattr(asked, "left", asked.left + 1))
    monkeypatch.setattr(drain, "time", SimpleNamespace(monotonic=lambda: asked.now, sleep=sleep))
    monkeypatch.setattr(drain.subprocess, "run", run)
    monkeypatch.setattr(socket, "create_connection", connect)
    return asked


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve, which comes with the command line
def test_this_node_is_drained_as_one_that_is_taken_away(cluster: SimpleNamespace) -> None:
    from ray.scripts.scripts import cli

    drain_this_node(90)
    (command,) = cluster.commands
    assert command[:4] == [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    given = cli.commands["drain-node"].make_context("drain-node", command[4:]).params  # as Ray's own command reads it
    assert given["address"] == "10.0.0.1:6379"
    assert given["node_id"] == NODE_ID
    assert given["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert given["deadline_remaining_seconds"] == 90
    assert given["reason_message"]
    assert cluster.addresses == ["auto"]
    assert cluster.left == 1


def test_the_cluster_is_that_of_the_environment(cluster: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    drain_this_node(90)
    assert cluster.addresses == ["10.0.0.9:6379"]


@pytest.mark.parametrize(("gone_at", "waited"), [(0, 0), (20, 20), (1e9, 90)])
def test_it_ends_when_the_node_is_gone_or_the_time_is_up(
    cluster: SimpleNamespace, gone_at: float, waited: float
) -> None:
    cluster.gone_at = gone_at
    drain_this_node(90)
    assert cluster.now == waited


def test_a_node_of_another_machine_is_left_alone(cluster: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.host = "192.0.2.1"  # nobody's, by RFC 5737
    assert main(["90"]) == 1
    said = "Ray at auto has 0 nodes on this machine; run this where one node is."
    assert capsys.readouterr().err == f"error: {said} [node-not-drained]\n"
    assert cluster.commands == []
    assert cluster.left == 1


def test_no_cluster_is_one_sentence(cluster: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: Any, **__: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    monkeypatch.setattr(ray, "init", nobody)
    with pytest.raises(HistillError, match=r"Could not find any running Ray instance\.\); set RAY_ADDRESS"):
        drain_this_node(90)


def test_what_ray_does_not_drain_is_an_error(cluster: SimpleNamespace) -> None:
    cluster.status = 1
    with pytest.raises(HistillError, match=f"does not drain the node {NODE_ID}"):
        drain_this_node(90)
