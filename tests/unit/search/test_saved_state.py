"""Tune's saved state after a job was killed while writing it."""

import json
import pickle
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem

from histill.errors import HistillError
from histill.search.saved_state import can_resume

pytestmark = pytest.mark.unit

FIRST, SECOND = "2026-01-02_03-04-05", "2026-01-02_13-04-05"
PICKLES = ("searcher", "search_gen", "callback")  # by name prefix; the second's suffix is .json
KINDS = ("experiment_state-{}.json", "searcher-state-{}.pkl", "search_gen_state-{}.json", "callback-states-{}.pkl")


def started(folder: Path, start: str) -> None:
    (folder / "tuner.pkl").write_bytes(pickle.dumps({"of": "the first start"}))
    for kind in KINDS:
        content = {"trials": list(range(100))}
        data = pickle.dumps(content) if kind.startswith(PICKLES) else json.dumps(content).encode()
        (folder / kind.format(start)).write_bytes(data)


def goes_on(folder: Path) -> bool:
    return can_resume(LocalFileSystem(), str(folder), "s3://runs/sweep/tune")


def cut(path: Path, to: int) -> None:
    path.write_bytes(path.read_bytes()[:to])


def test_a_sweep_that_drew_no_trial_is_begun(tmp_path: Path) -> None:
    assert not goes_on(tmp_path / "not yet")
    assert not goes_on(tmp_path)
    (tmp_path / "tuner.pkl").write_bytes(b"")  # truncated, without a later write
    assert not goes_on(tmp_path)


def test_a_whole_state_is_gone_on_from(tmp_path: Path) -> None:
    started(tmp_path, FIRST)
    (tmp_path / "trial-1").mkdir()
    assert goes_on(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", [0, 20])
def test_where_the_last_starts_is_cut_short_the_one_before_is_taken(tmp_path: Path, kind: str, to: int) -> None:
    started(tmp_path, FIRST)
    started(tmp_path, SECOND)
    cut(tmp_path / kind.format(SECOND), to)
    assert goes_on(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(["tuner.pkl", *(each.format(FIRST) for each in KINDS)])  # Tune takes the newest one


@pytest.mark.parametrize("name", ["tuner.pkl", KINDS[0].format(FIRST), KINDS[1].format(FIRST)])
def test_a_state_that_is_lost_is_said_to_be_with_the_mend(tmp_path: Path, name: str) -> None:
    started(tmp_path, FIRST)
    cut(tmp_path / name, 20)
    with pytest.raises(HistillError) as raised:
        goes_on(tmp_path)
    assert "Tune's state in s3://runs/sweep/tune is truncated" in str(raised.value)
    assert "remove that folder and run the same command again" in str(raised.value)
    assert (tmp_path / name).exists()  # nothing is removed, so that it can be inspected
