"""What `pip install` of the wheel gives a user: the command, the types, the data files, and nothing of the checkout."""

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed; `make setup` does it.")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files; what histill needs is taken from where the tests run."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*command, str(wheel)], check=True)
    return folder


def run(installed: Path, folder: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_it_holds_the_package_and_its_data_alone(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"histill", f"{wheel.stem.rsplit('-', 3)[0]}.dist-info"}
    for path in (ROOT / "platform" / "histill").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(ROOT / "platform").as_posix() in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_command_answers_from_any_folder(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "histill"
    assert "\n  pretrain " in run(installed, tmp_path, str(command), "--help")
    where = run(installed, tmp_path, sys.executable, "-c", "import histill; print(histill.__file__)").strip()
    assert Path(where).is_relative_to(installed)
    assert "usage: histill ingest" in run(installed, tmp_path, str(command), "ingest", "--help")
    assert "--slide" in run(installed, tmp_path, str(command), "demo", "--help")
