"""Claims: of several jobs with one run name only one works, and a dead job does not block the others."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from histill.cluster.signals import handle_signals, is_interrupted
from histill.config.common import Storage
from histill.errors import HistillError, InputError
from histill.train import claim as module
from histill.train.claim import CLAIM_NAME, LEASE_S, hold_claim, is_lost

pytestmark = pytest.mark.unit

STORAGE = Storage()
HOLD = """
import sys
from histill.config.common import Storage
from histill.train.claim import hold_claim
with hold_claim(sys.argv[1], Storage()):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the claim of the test's folder until its stdin ends."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_living_job_is_named(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    with pytest.raises(InputError) as raised, hold_claim(str(tmp_path), STORAGE):
        pass
    message = str(raised.value)
    assert f"another job (process {holder.pid} on " in message
    assert str(tmp_path) in message
    assert "\n" not in message


def test_a_job_that_ended_leaves_no_claim(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    holder.communicate("")
    assert not (tmp_path / CLAIM_NAME).exists()
    with hold_claim(str(tmp_path), STORAGE):
        assert (tmp_path / CLAIM_NAME).exists()


def test_a_job_that_was_killed_is_followed_at_once(
    tmp_path: Path, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / CLAIM_NAME).exists()
    monkeypatch.setattr(module, "time", SimpleNamespace())  # no time.sleep: it must not wait
    with (
        hold_claim(str(tmp_path), STORAGE),
        pytest.raises(InputError, match="another job"),
        hold_claim(str(tmp_path), STORAGE),
    ):
        pass
    assert not (tmp_path / CLAIM_NAME).exists()


def elsewhere(folder: Path, renewed: int = 0) -> bytes:
    """Write the claim of a job on another machine whose process id is that of this process."""
    place = ["other", "boot pid:[1]", os.getpid(), "1"]
    content = json.dumps({"token": "others", "place": place, "renewed": renewed}).encode()
    whole = folder / "whole"
    whole.write_bytes(content)
    whole.replace(folder / CLAIM_NAME)  # atomically, since a job may read it meanwhile
    return content


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], None]], list[float]]:
    """`passing(event)`: a fake clock that advances only when the claim sleeps; `event` receives the time."""

    def install(event: Callable[[float], None]) -> list[float]:
        now = [0.0]

        def sleep(seconds: float) -> None:
            now[0] += seconds
            event(now[0])

        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
        return now

    return install


def test_a_claim_from_elsewhere_that_is_renewed_is_anothers(
    tmp_path: Path, passing: Callable[..., list[float]], capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere(tmp_path)
    now = passing(lambda seconds: elsewhere(tmp_path, renewed=1) if seconds == 10 else None)
    with pytest.raises(InputError, match=r"another job \(process \d+ on other\)"), hold_claim(str(tmp_path), STORAGE):
        pass
    assert now == [10.0]
    assert capsys.readouterr().err == (
        f"{tmp_path} is claimed by a job on other; waiting up to 60 s to see whether that is alive.\n"
    )


def test_a_claim_from_elsewhere_that_nobody_renews_is_taken_over(
    tmp_path: Path, passing: Callable[..., list[float]]
) -> None:
    elsewhere(tmp_path)
    now = passing(lambda seconds: None)
    with hold_claim(str(tmp_path), STORAGE):
        assert b"others" not in (tmp_path / CLAIM_NAME).read_bytes()
    assert now == [LEASE_S]


def test_of_two_heirs_one_is_told(
    tmp_path: Path, passing: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path)

    def too_late(uri: str, *_: object) -> bool:
        elsewhere(tmp_path, renewed=1)
        return False

    monkeypatch.setattr(module, "swap_bytes", too_late)
    now = passing(lambda seconds: elsewhere(tmp_path, renewed=2) if seconds == LEASE_S + 10 else None)
    with pytest.raises(InputError, match="another job"), hold_claim(str(tmp_path), STORAGE):
        pass
    assert now == [LEASE_S + 10]


def test_a_claim_that_cannot_be_read_is_watched_like_others(
    tmp_path: Path, passing: Callable[..., list[float]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / CLAIM_NAME).write_text("no claim")
    passing(lambda seconds: None)
    with hold_claim(str(tmp_path), STORAGE):
        pass
    assert "by a job on an unknown machine" in capsys.readouterr().err


def test_a_claim_is_renewed_and_its_loss_ends_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.01)
    path, until = tmp_path / CLAIM_NAME, time.monotonic() + 60

    def work() -> None:
        with hold_claim(str(tmp_path), STORAGE):
            while json.loads(path.read_bytes())["renewed"] < 2:
                assert time.monotonic() < until
            while time.monotonic() < until:
                elsewhere(tmp_path)  # again: a renewal in progress may have replaced it
                time.sleep(0.01)

    with pytest.raises(HistillError, match="another job has taken over"):
        work()
    assert is_lost(str(tmp_path))
    assert b"others" in path.read_bytes()  # the new holder's claim is kept
    assert "claim" not in {thread.name for thread in threading.enumerate()}


def test_a_job_that_has_lost_its_claim_says_that_and_not_that_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.01)

    def work() -> None:
        with handle_signals(), hold_claim(str(tmp_path), STORAGE):
            until = time.monotonic() + 60
            while time.monotonic() < until:
                elsewhere(tmp_path)
                time.sleep(0.01)

    with pytest.raises(HistillError, match="another job has taken over"):
        work()
    assert "the same command goes on" not in capfd.readouterr().err
    assert not is_interrupted()


def test_a_renewal_that_was_written_and_not_answered_is_followed_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.01)
    path, until, swap = tmp_path / CLAIM_NAME, time.monotonic() + 60, module.swap_bytes
    lost: list[bool] = []

    def first_answer_lost(*given: Any) -> bool:
        done = swap(*given)
        if not lost:
            lost.append(done)
            raise HistillError("the server is away", code="storage-unreachable")
        return done

    monkeypatch.setattr(module, "swap_bytes", first_answer_lost)
    with hold_claim(str(tmp_path), STORAGE):
        while json.loads(path.read_bytes())["renewed"] < 4:
            assert time.monotonic() < until
    assert lost == [True]


def test_a_refused_job_leaves_no_empty_folder(tmp_path: Path) -> None:
    with hold_claim(str(tmp_path / "runs" / "one"), STORAGE):
        pass
    assert os.listdir(tmp_path) == []
    with hold_claim(str(tmp_path / "runs" / "one"), STORAGE):
        (tmp_path / "runs" / "one" / "run.json").touch()
    (tmp_path / "mine").mkdir()
    with hold_claim(str(tmp_path / "mine"), STORAGE):
        pass
    assert sorted(os.listdir(tmp_path)) == ["mine", "runs"]


def test_ctrl_c_is_no_loss(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), hold_claim(str(tmp_path), STORAGE):
        signal.raise_signal(signal.SIGINT)
    assert not (tmp_path / CLAIM_NAME).exists()


def test_a_server_that_is_away_does_not_cost_the_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.01)
    asked, enough = [], threading.Event()

    def away(*_: object) -> bool:
        asked.append(True)
        if len(asked) > 3:
            enough.set()
        raise HistillError("the server is away", code="storage-unreachable")

    monkeypatch.setattr(module, "swap_bytes", away)
    with hold_claim(str(tmp_path), STORAGE):
        assert enough.wait(60)
    assert not (tmp_path / CLAIM_NAME).exists()
