"""What the probe makes of what nodes say of themselves."""

import copy
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histill.config.check_cluster import CheckConfig
from histill.config.common import Elastic, WorkerGroup
from histill.config.load import load_config
from histill.preflight import node_probe, rules
from histill.preflight.node_probe import Facts
from histill.preflight.nodes import Node
from histill.preflight.results import DRIVER, Row

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
WELL: Facts = {
    "versions": {"Python": "3.11.7", "ray": "2.60.0", "torch": "2.8.0+cu130", "numpy": "2.1.0"},
    "code": "0123456789",
    "code_at": "/opt/histill",
    "token": {"path": "/etc/token", "mode": 0o600},
    "disks": {"temporary files": {"folder": "/tmp", "free": 50_000_000_000, "total": 10**11, "writable": True}},
    "shm_bytes": 8 * 10**9,
    "gpus_listed": None,
    "gpus_usable": None,
}


def facts(**others: Any) -> Facts:
    return copy.deepcopy(WELL) | others  # type: ignore[return-value]


def machine(name: str = "a", address: str = "10.0.0.1", **resources: float) -> Node:
    return Node(name, f"id-{name}", address, "/tmp/ray/session", resources)


def only(rows: list[Row]) -> Row:
    (one,) = rows
    return one


def test_equal_nodes_are_one_green_row_each() -> None:
    answers = {DRIVER: facts(), "a": facts(), "b": facts()}
    for rows in (
        rules.check_token_files(answers),
        rules.check_versions(answers),
        rules.check_code(answers),
        rules.check_disks(answers, 10),
    ):
        row = only(rows)
        assert (row.where, row.state, row.fix) == (f"{DRIVER}, 2 nodes", "ok", "")


def test_another_version_is_named_with_the_drivers() -> None:
    other = facts(versions={"Python": "3.12.1", "ray": "2.60.0", "torch": "2.8.0+cpu", "numpy": None})
    green, red = rules.check_versions({DRIVER: facts(), "a": facts(), "b": other})
    assert (green.where, green.state) == (f"{DRIVER}, a", "ok")
    assert "torch 2.8.0" in green.found
    assert (red.where, red.state) == ("b", "failed")
    assert red.found == "Python 3.12.1 (driver: 3.11.7), numpy is missing (driver: 2.1.0)"
    assert "constraints.txt" in red.fix


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (facts(code="9876543210"), "/opt/histill differs from the driver's histill"),
        (facts(code=None, code_at="ModuleNotFoundError: No module named 'histill'"), "histill cannot be imported"),
    ],
)
def test_another_histill_or_none(there: Facts, said: str) -> None:
    _, red = rules.check_code({DRIVER: facts(), "a": there})
    assert (red.where, red.state) == ("a", "failed")
    assert said in red.found
    assert "py_modules" in red.fix


@pytest.mark.parametrize(
    ("token", "state", "fix"),
    [
        ({"path": "/etc/token", "mode": 0o600}, "ok", ""),
        ({"path": "/etc/token", "mode": 0o400}, "ok", ""),
        ({"path": None, "mode": None}, "ok", ""),
        ({"path": "/etc/token", "mode": 0o640}, "failed", "chmod 600 /etc/token"),
        ({"path": "/etc/token", "mode": 0o604}, "failed", "chmod 600 /etc/token"),
    ],
)
def test_a_token_file_is_its_owners_alone(token: Any, state: str, fix: str) -> None:
    row = only(rules.check_token_files({"a": facts(token=token)}))
    assert (row.state, row.fix) == (state, fix)


def test_without_tokens_there_is_no_row_on_their_files() -> None:
    assert rules.check_token_files({DRIVER: facts(token=None)}) == []


@pytest.mark.parametrize(
    ("asked_for", "address", "state"),
    [
        (True, "10.0.0.1", "ok"),
        (False, "10.0.0.1", "failed"),
        (False, "127.0.0.1", "warning"),
        (None, "10.0.0.1", "warning"),
    ],
)
def test_a_cluster_without_token_is_red_where_others_reach_it(asked_for: bool | None, address: str, state: str) -> None:
    verdict = rules.check_token_auth(asked_for, f"{address}:6379", [machine(address=address)])
    assert verdict.state == state
    assert bool(verdict.fix) == (state != "ok")


@given(
    st.floats(-1e4, 1e4), st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=1, max_size=5), st.floats(0, 1)
)
def test_the_clocks_offset_is_known_within_what_is_said(
    ahead_s: float, ways: list[tuple[float, float]], begun: float
) -> None:
    samples = [(begun, begun + there + ahead_s, begun + there + back) for there, back in ways]
    found = rules.estimate_offset(samples)
    assert abs(found.ahead_s - ahead_s) <= found.within_s + 1e-9
    assert math.isclose(found.within_s, min(there + back for there, back in ways) / 2, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("ahead_s", "within_s", "state", "said"),
    [
        (0.01, 0.001, "ok", "within 0.01 s"),
        (2.0005, 0.001, "ok", "within 2 s"),
        (-7.25, 0.01, "failed", "7.25 s behind the driver's"),
        (7.25, 0.01, "failed", "7.25 s ahead of the driver's"),
        (0.1, 5.0, "warning", "too long to tell"),
    ],
)
def test_clocks(ahead_s: float, within_s: float, state: str, said: str) -> None:
    row = only(rules.check_clocks({"a": rules.Offset(ahead_s, within_s)}, 2.0))
    assert row.state == state
    assert said in row.found


def disk(free: float, writable: bool = True, folder: str = "/tmp") -> node_probe.Disk:
    return {"folder": folder, "free": int(free), "total": 10**12, "writable": writable}


@pytest.mark.parametrize(
    ("disks", "state", "said"),
    [
        ({"temporary files": disk(200e9)}, "ok", "200.0 GB or more"),
        ({"temporary files": disk(9e9)}, "failed", "9.0 GB free at /tmp (temporary files), and 10 GB expected"),
        ({"storage.cache": disk(200e9, writable=False)}, "failed", "/tmp (storage.cache) cannot be written"),
        ({rules.RAY_SESSION: disk(40e9)}, "warning", "96% full"),
        ({rules.RAY_SESSION: disk(40e9), "temporary files": disk(9e9)}, "failed", "9.0 GB free"),
    ],
)
def test_disks(disks: dict[str, node_probe.Disk], state: str, said: str) -> None:
    row = only(rules.check_disks({"a": facts(disks=disks)}, 10))
    assert row.state == state
    assert said in row.found


def test_shared_memory_that_is_smaller_than_the_object_store() -> None:
    nodes = [machine("a", object_store_memory=4e9), machine("b", object_store_memory=9e9), machine("c")]
    green, yellow = rules.check_shared_memory({"a": facts(), "b": facts()}, nodes)
    assert (green.where, green.state) == ("a", "ok")
    assert (yellow.where, yellow.state) == ("b", "warning")
    assert "--shm-size" in yellow.fix


@pytest.mark.parametrize(
    ("handed", "listed", "usable", "state", "said"),
    [
        (0, None, None, "ok", "none"),
        (2, 2, 2, "ok", "2 in all"),
        (2, 2, 0, "failed", "torch 2.8.0+cu130 can use 0, and nvidia-smi lists 2"),
        (2, None, 0, "failed", "there is no nvidia-smi"),
        (2, 2, None, "failed", "did not say"),
        (0, 2, None, "warning", "Ray hands out none"),
    ],
)
def test_gpus(handed: int, listed: int | None, usable: int | None, state: str, said: str) -> None:
    row = only(rules.check_gpus({"a": facts(gpus_listed=listed, gpus_usable=usable)}, [machine("a", GPU=handed)]))
    assert row.state == state
    assert said in row.found


NODES = [machine("head", CPU=0.0), machine("a", CPU=4.0, GPU=2.0), machine("b", CPU=3.0)]


@pytest.mark.parametrize(
    ("workers", "state", "found"),
    [
        (WorkerGroup(count=7), "ok", "room for 7 of 7 workers of 1 CPU"),
        (WorkerGroup(count=8), "failed", "room for 7 of 8 workers of 1 CPU"),
        (WorkerGroup(count=3, cpus=2.0), "ok", "room for 3 of 3 workers of 2 CPUs"),
        (WorkerGroup(count=4, cpus=2.0), "failed", "room for 3 of 4 workers of 2 CPUs"),
        (WorkerGroup(count=3, gpus=1.0), "failed", "room for 2 of 3 workers of 1 CPU and 1 GPU"),
        # a worker's part of a GPU lies on one
        (WorkerGroup(count=3, gpus=0.6), "failed", "room for 2 of 3 workers of 1 CPU and 0.6 GPUs"),
        (WorkerGroup(count=Elastic(min=2, max=8)), "ok", "room for 7 of 8 workers of 1 CPU, and 2 are enough"),
        (WorkerGroup(count=Elastic(min=2, max=4)), "ok", "room for 4 of 4 workers of 1 CPU"),
        (WorkerGroup(count=Elastic(min=8, max=9)), "failed", "room for 7 of 9 workers of 1 CPU, and 8 needed"),
    ],
)
def test_room(workers: WorkerGroup, state: str, found: str) -> None:
    verdict = rules.check_capacity(NODES, workers)
    assert (verdict.state, verdict.found) == (state, found)
    assert ("add nodes" in verdict.fix) == (state == "failed")


def test_fewer_nodes_than_expected() -> None:
    assert rules.check_node_count([machine()], 1).state == "ok"
    verdict = rules.check_node_count([machine()], 3)
    assert (verdict.state, verdict.found) == ("failed", "1 node alive, and 3 expected")


def test_a_digest_tells_contents_names_and_bounds_apart(tmp_path: Path) -> None:
    trees = [{"a.py": "x"}, {"a.py": "y"}, {"b.py": "x"}, {"a.py": "", "b.py": "x"}, {"a.py": "x", "b.py": ""}]
    digests = set()
    for number, tree in enumerate(trees):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, text in tree.items():
            (folder / name).write_text(text)
        digests.add(node_probe.digest_folder(str(folder)))
        (folder / "a.pyc").write_text("compiled")
        assert node_probe.digest_folder(str(folder)) in digests
    assert len(digests) == len(trees)


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    found = node_probe.measure_disk(str(tmp_path / "cache" / "shards"))
    assert (found["folder"], found["writable"]) == (str(tmp_path / "cache" / "shards"), True)
    assert 0 < found["free"] <= found["total"]


def test_facts_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("0" * 64)
    token.chmod(0o640)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    # where nothing can be written, and `tempfile` would look elsewhere
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    found = node_probe.gather_facts(("numpy", "no-such-package"), {"cache": str(tmp_path)}, 0, 10.0)
    assert found["token"] == {"path": str(token), "mode": 0o640}
    assert "0" * 64 not in str(found)
    assert set(found["versions"]) == {"Python", "numpy", "no-such-package"}
    assert found["versions"]["no-such-package"] is None
    assert found["code_at"] == str(ROOT / "platform" / "histill")
    assert {use: each["folder"] for use, each in found["disks"].items()} == {
        "temporary files": str(tmp_path / "gone"),
        "cache": str(tmp_path),
    }
    assert found["gpus_usable"] is None


@pytest.mark.parametrize("value", [None, "", "disabled"])
def test_no_token_is_looked_for_where_tokens_are_off(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if value is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", value)
    assert node_probe.gather_facts((), {}, 0, 1.0)["token"] is None


def test_a_program_that_takes_too_long_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    begun = time.monotonic()
    assert node_probe.gather_facts((), {}, 0, 0.2)["gpus_listed"] is None
    assert time.monotonic() - begun < 20


def test_the_probe_takes_a_runs_workers_and_its_own_file() -> None:
    config = load_config(CheckConfig, str(ROOT / "jobs/configs/check_cluster.yaml"), ["workers.count={min: 2, max: 8}"])
    assert config.workers is not None
    assert (config.workers.fewest, config.workers.most) == (2, 8)
