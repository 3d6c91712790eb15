"""Three hosts: a head without workers and two working nodes, S3 and MLflow outside, tokens, jobs given from outside."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.hosts import missing

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1800)  # four or five minutes on a quiet machine
def test_a_run_that_loses_workers_nodes_servers_and_its_driver_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    if (why := missing()) is not None:
        pytest.skip(why)
    command = [sys.executable, "-m", "chaos.faults", "--quick", "--out", str(tmp_path / "site")]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = finished.stdout + finished.stderr
    assert finished.returncode == 0, said
    outcome = json.loads(finished.stdout.splitlines()[-1])
    assert outcome == {"injected": 4, "survived": 4, "lost_tiles": 0, "repeated_tiles": 0}, said
