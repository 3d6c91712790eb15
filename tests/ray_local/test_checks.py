"""The probe on a Ray of this machine: what nodes answer, and what is red."""

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from histill.cluster.connect import asks_for_token
from histill.config.check_cluster import CheckConfig
from histill.errors import InputError
from histill.local.ray_head import RayHead
from histill.local.s3 import S3Server
from histill.preflight.check import check_cluster
from histill.preflight.nodes import ask_nodes, list_alive_nodes
from histill.preflight.results import Row

pytestmark = pytest.mark.ray_local


def by_check(rows: list[Row]) -> Mapping[str, Row]:
    named = {row.check: row for row in rows}
    assert len(named) == len(rows), rows
    return named


def answer() -> int:
    return 1


def refuse() -> None:
    raise InputError("the folder is gone; make it.", code="storage-unusable")


def sleep() -> None:
    time.sleep(60)


def test_a_node_that_refuses_or_is_silent_has_an_error(ray_local: RayHead, capsys: pytest.CaptureFixture[str]) -> None:
    (node,) = list_alive_nodes()
    assert node.name.endswith(" (head)")
    assert ask_nodes([node], answer, lambda _: (), 60) == ({node.name: 1}, {})
    answers, errors = ask_nodes([node], refuse, lambda _: (), 60)
    assert answers == {}
    assert isinstance(errors[node.name], InputError)
    answers, errors = ask_nodes([node], sleep, lambda _: (), 0.5)
    assert answers == {}
    assert "no answer within 0.5 s" in str(errors[node.name])
    assert f"waiting for {node.name}" in capsys.readouterr().err


def test_a_cluster_without_tokens_is_told_from_one_with(ray_local: RayHead) -> None:
    assert asks_for_token(ray_local.address) is False


def test_what_is_missing_is_red_in_the_driver_and_on_the_node(ray_local: RayHead, s3: S3Server) -> None:
    config = CheckConfig.model_validate(
        {
            "read": f"s3://{s3.bucket}/checks/nothing",
            "write": "s3://no-such-bucket/runs",
            "nodes": 2,
            "workers": {"count": 5},
            "tracking": {"uri": "http://127.0.0.1:1"},
            "max_skew_s": 60.0,
        }
    )
    rows = by_check(check_cluster(config))
    red = {check for check, row in rows.items() if row.state == "failed"} - {"free disk"}
    assert red - {"token auth"} == {"nodes", "room", "read", "write", "MLflow"}
    assert all(row.fix for row in rows.values() if row.state != "ok")
    assert "asks for no token" in rows["token auth"].found
    assert rows["nodes"].found == "1 node alive, and 2 expected"
    assert rows["room"].found == "room for 4 of 5 workers of 1 CPU"
    assert rows["read"].found == f"there is no file below {config.read}"
    assert rows["write"].found.startswith("the bucket of s3://no-such-bucket/runs does not exist")
    for check in ("read", "write", "MLflow"):
        assert rows[check].where.startswith("driver, ")
    assert "conditional write" not in rows


def test_what_the_probe_writes_itself_is_nothing_to_read(ray_local: RayHead, tmp_path: Path) -> None:
    config = CheckConfig(read=str(tmp_path), write=str(tmp_path / "runs"), max_skew_s=60.0)
    rows = by_check(check_cluster(config))
    assert (rows["read"].state, rows["write"].state) == ("failed", "ok")
    assert rows["read"].where == rows["write"].where
    assert "conditional write" not in rows
    assert list((tmp_path / "runs").iterdir()) == []
