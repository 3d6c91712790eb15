"""Joining a cluster: the one at $RAY_ADDRESS with its token, or an own one that leaves nothing behind."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from histill.local.ray_head import RayHead
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.cluster

DRIVER = """
from histill.cluster.connect import connect_cluster
from histill.errors import InputError

try:
    with connect_cluster():
        import os
        import ray

        @ray.remote
        def place():
            return os.environ["RAY_ADDRESS"], os.getcwd()

        found = ray.get(place.remote())
        assert found == (ray.get_runtime_context().gcs_address, os.getcwd()), found
        with connect_cluster():
            pass
        assert ray.is_initialized()
    print("joined, and left" if not ray.is_initialized() else "still in")
except InputError as error:
    print("refused:", error)
"""


def drive(home: Path, **environment: str) -> str:
    """What the driver prints; it must print nothing else."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=home,
        env={**inherited, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.strip()


def test_an_own_cluster_leaves_no_token_behind(tmp_path: Path) -> None:
    assert drive(tmp_path) == "joined, and left"
    assert not (tmp_path / ".ray" / "auth_token").exists()


def test_with_the_token(head: RayHead, tmp_path: Path) -> None:
    assert drive(tmp_path, **head.environment()) == "joined, and left"


@pytest.mark.parametrize("token", [None, "b" * 64], ids=["missing", "wrong"])
def test_without_the_token(head: RayHead, tmp_path: Path, token: str | None) -> None:
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
    said = drive(tmp_path, RAY_ADDRESS=head.address, **environment)
    assert said.startswith(f"refused: Ray at {head.address} refuses a missing or wrong token; set RAY_AUTH_MODE=token")


def test_the_wrong_port(head: RayHead, tmp_path: Path) -> None:
    said = drive(tmp_path, RAY_ADDRESS=head.dashboard_url.removeprefix("http://"))
    assert "not the dashboard's" in said


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", "no Ray answers at RAY_ADDRESS=127.0.0.1:1"),
        ("http://127.0.0.1:8265", "ray job submit --address http://127.0.0.1:8265"),
        ("nonsense", "host:port was expected"),
    ],
)
def test_no_cluster_there(tmp_path: Path, address: str, expected: str) -> None:
    said = drive(tmp_path, RAY_ADDRESS=address)
    assert said.startswith("refused: ")
    assert expected in said


def test_relative_places_are_those_of_the_folder_where_the_command_was_given(
    head: RayHead, tile_set: Callable[..., Manifest], tmp_path: Path
) -> None:
    """For the workers of trials, too: Ray gives each a folder of its own, and was started in another one."""
    tile_set(tmp_path / "tiles")
    keys = (
        "name=sweep runs=runs data.tiles=tiles data.batch_size=8 teacher.classical=true student.encoder=csat_tiny "
        "optimizer.epochs=1 trials=1 space.seed.choice=[1] workers.count=1 workers.cpus=0.5"
    )
    command = [sys.executable, "-m", "histill", "search", *keys.split()]
    environment = os.environ | head.environment()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/sweep/finished.json").exists()
