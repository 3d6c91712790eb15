"""chaos/kills.py with few kills: slides from S3 are cut and predicted by a job that is killed at its writes."""

import sys

import pytest

from chaos import kills
from chaos.kill_runs import processes
from chaos.kill_runs.place import place as place_of
from histill.local.ray_head import RayHead
from histill.local.s3 import S3Server
from histill.local.tracking import TrackingServer

pytestmark = pytest.mark.chaos

KILLS = 4


@pytest.mark.timeout(1800)  # a minute or two on a quiet machine
@pytest.mark.skipif(sys.platform != "linux", reason="the kills need /proc and prctl")
def test_a_job_killed_at_its_writes_ends_as_if_undisturbed(
    ray_local: RayHead,
    s3: S3Server,
    tracking: TrackingServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder, scratch = tmp_path_factory.mktemp("kills"), tmp_path_factory.mktemp("scratch")
    with processes.adopting(), place_of(folder, scratch, s3, tracking, ray_local) as place:
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
