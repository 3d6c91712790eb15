"""benchmarks/kills.py with few kills: slides from S3 are cut and predicted by a job that is killed at its writes."""

import importlib
import sys
from pathlib import Path

import pytest

from histill.local.ray_head import RayHead
from histill.local.s3 import S3Server
from histill.local.tracking import TrackingServer

pytestmark = pytest.mark.ray_local

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
KILLS = 4


@pytest.mark.timeout(1800)  # a minute or two on a quiet machine
@pytest.mark.skipif(sys.platform != "linux", reason="the kills need /proc and prctl")
def test_a_job_killed_at_its_writes_ends_as_if_undisturbed(
    ray_local: RayHead,
    s3: S3Server,
    tracking: TrackingServer,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    kills, places, processes = map(importlib.import_module, ("kills", "kill_runs.place", "kill_runs.processes"))
    folder, scratch = tmp_path_factory.mktemp("kills"), tmp_path_factory.mktemp("scratch")
    with processes.adopting(), places.place(folder, scratch, s3, tracking, ray_local) as place:
        verdicts = kills.kill(place, ["predict"], KILLS, seed=1)
    assert {verdict.chain: verdict.faults for verdict in verdicts if verdict.faults} == {}
    counts = kills.sums(verdicts)
    assert counts == {
        "kills": counts["kills"],
        "as_undisturbed": counts["kills"],
        "partial_objects": 0,
        "orphans": 0,
        "running_runs": 0,
    }
    assert counts["kills"] >= KILLS // 2  # others may come too late
