"""Temporary folders: removed with the block, with the process, or by the next process after a kill."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from histill.storage import scratch

pytestmark = pytest.mark.unit

HOLDER = """
import sys
from pathlib import Path
from histill.storage.scratch import make_scratch_folder
folder = Path(make_scratch_folder())
(folder / "weights").write_bytes(b"0" * 1000)
print(folder, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scratch._folder_of.cache_clear()
    yield tmp_path
    scratch._folder_of.cache_clear()


def holder(temporary: Path) -> tuple["subprocess.Popen[str]", Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_goes_with_its_block(temporary: Path) -> None:
    with scratch.scratch_folder() as one, scratch.scratch_folder() as other:
        assert one != other
        assert Path(one).parent.parent == temporary
        Path(one, "file").write_text("")
    assert not Path(one).exists()
    assert not Path(other).exists()


def test_it_goes_with_the_process(temporary: Path) -> None:
    process, folder = holder(temporary)
    assert (folder / "weights").exists()
    process.communicate("")
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_and_what_is_in_use_stays(temporary: Path) -> None:
    dead, left = holder(temporary)
    living, used = holder(temporary)
    dead.kill()
    dead.communicate()
    assert (left / "weights").exists()
    with scratch.scratch_folder():
        assert not left.parent.exists()
        assert (used / "weights").exists()
    living.communicate("")
    assert not used.parent.exists()
