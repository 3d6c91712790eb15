"""The newest checkpoint of a run: only complete ones, whether or not Ray Train has recorded them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem

from histill.train.newest import CONTENTS_NAME, drop_broken_state, find_newest_checkpoint, list_contents, step_of
from histill.train.run_folder import remove_orphans

pytestmark = pytest.mark.unit

LOCAL = LocalFileSystem()
NOTES = "checkpoint_manager_snapshot.json"


def saved(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights" * step)
    (path / "position.json").write_text("{}")
    list_contents(str(path))
    (path / ".metadata.json").write_text('{"step": 1}')
    return path


def newest(folder: Path) -> int | None:
    path = find_newest_checkpoint(LOCAL, str(folder))
    return None if path is None else step_of(path)


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    assert newest(tmp_path / "not yet") is None
    for step in (3, 9, 6, 100):
        saved(tmp_path, step)
    (tmp_path / "stepping").mkdir()
    for name in ("step-00000200-copy", "step-00000200.bak", "step-200"):  # complete, but not named by a run
        shutil.copytree(tmp_path / "step-00000100", tmp_path / name)
    assert newest(tmp_path) == 100


def test_what_a_lost_worker_left_is_removed_and_no_copy(tmp_path: Path) -> None:
    for name in ("step-00000003", "step-00000006", "step-00000003-copy", "steps"):
        (tmp_path / name).mkdir()
    remove_orphans(LOCAL, str(tmp_path), {"step-00000006"})
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000006", "step-00000003-copy", "steps"}


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        path = saved(tmp_path / "small", step % 7)
        path.rename(tmp_path / f"step-{step:08d}")
    assert newest(tmp_path) == 100_000_000


@pytest.mark.parametrize("name", ["model.safetensors", "position.json", CONTENTS_NAME, ".metadata.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "cut short"])
def test_one_that_was_not_written_to_its_end_is_passed_over(tmp_path: Path, name: str, how: str) -> None:
    saved(tmp_path, 3)
    path = saved(tmp_path, 6) / name
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: -1 if how == "cut short" else 0])
    assert newest(tmp_path) == 3


def test_one_of_a_version_that_listed_no_contents_is_left_to_ray(tmp_path: Path) -> None:
    (saved(tmp_path, 3) / CONTENTS_NAME).unlink()
    assert newest(tmp_path) is None


def noted(version: str, *steps: int) -> dict[str, Any]:
    return {
        "ray_version": version,
        "checkpoint_results": [{"checkpoint_dir_name": f"step-{step:08d}", "metrics": {}} for step in steps],
    }


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (json.dumps(noted("2.60.0", 3, 6)), True),
        (json.dumps(noted("2.60.0")), True),
        (json.dumps(noted("2.59.0", 3)), False),  # Ray rejects those of another version
        (json.dumps(noted("2.60.0", 3, 9)), False),  # and those that name missing checkpoints
        (json.dumps(noted("2.60.0", 3))[:-5], False),
        ("", False),
        ("[]", False),
    ],
    ids=["sound", "of none", "older", "gone", "cut short", "empty", "other"],
)
def test_notes_that_ray_would_refuse_are_removed(tmp_path: Path, text: str, kept: bool) -> None:
    for step in (3, 6):
        saved(tmp_path, step)
    (tmp_path / NOTES).write_text(text)
    assert not drop_broken_state(LOCAL, str(tmp_path), "2.60.0")
    assert (tmp_path / NOTES).exists() == kept
    assert newest(tmp_path) == 6


def test_a_run_without_notes_is_new(tmp_path: Path) -> None:
    assert not drop_broken_state(LOCAL, str(tmp_path), "2.60.0")
    assert not drop_broken_state(LOCAL, str(tmp_path / "not yet"), "2.60.0")


def test_a_run_that_has_nothing_to_go_on_from_is_told(tmp_path: Path) -> None:
    (saved(tmp_path, 3) / CONTENTS_NAME).unlink()
    (tmp_path / NOTES).write_text(json.dumps(noted("2.59.0", 3)))
    assert drop_broken_state(LOCAL, str(tmp_path), "2.60.0")
