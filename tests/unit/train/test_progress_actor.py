"""The progress actor: the messages of workers, and the lines that a user sees."""

import contextlib
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from histill.cluster import progress
from histill.train.progress_line import ProgressLine
from histill.train.ray import progress_actor
from histill.train.ray.progress_actor import ProgressActor, show_progress
from histill.train.snapshot import Snapshot

pytestmark = pytest.mark.unit

ROOM = "the cluster has room"
STARTING = "workers are starting, no first step yet,"


def snapshot(step: int) -> Snapshot:
    return Snapshot(0, step, 100, step * 8, 796, 0.5, {}, 1e-3, 10.0, 0.25)


def actor(state: ProgressActor) -> Any:
    """A stand-in for the Ray actor that calls `state` directly; `ray.get` has to return its argument."""
    names = ("take", "tell", "show", "note_checkpoint")
    return SimpleNamespace(**{name: SimpleNamespace(remote=getattr(state, name)) for name in names})


def test_lines_are_taken_once_and_in_order() -> None:
    state = ProgressActor()
    assert state.take() == (None, 0, [])
    state.note_checkpoint()
    state.tell("one")
    state.tell("two")
    state.show(snapshot(1))
    state.show(snapshot(2))
    assert state.take() == (snapshot(2), 1, ["one", "two"])
    assert state.take() == (snapshot(2), 1, [])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """`seen(seconds, events)`: the lines shown in that time; `events` maps a second to an action on the board, and
    `answers` to an error that Ray raises then."""

    def show(
        seconds: int, events: dict[int, Callable[[ProgressActor], None]], answers: dict[int, Exception] | None = None
    ) -> list[str]:
        now, state = [100], ProgressActor()
        clock = SimpleNamespace(monotonic=lambda: float(now[0]))
        monkeypatch.setattr(progress_actor, "time", clock)
        monkeypatch.setattr(progress, "time", clock)
        monkeypatch.setattr(progress_actor, "_describe_capacity", lambda: ROOM)

        def get(value: Any, timeout: float) -> Any:
            if error := (answers or {}).get(now[0] - 100):
                raise error
            return value

        monkeypatch.setattr(ray, "get", get)

        def wait(timeout: float) -> bool:
            now[0] += 1
            events.get(now[0] - 100, lambda state: None)(state)
            return now[0] - 100 >= seconds

        stop: Any = SimpleNamespace(wait=wait)
        with contextlib.closing(ProgressLine("first")) as line:
            progress_actor._show(actor(state), line, stop)
        return capsys.readouterr().err.splitlines()

    return show


def test_what_workers_tell_is_shown_under_the_runs_name(seen: Callable[..., list[str]]) -> None:
    lines = seen(
        3,
        {
            1: lambda state: state.tell("resuming from step 4 with 2 workers"),
            3: lambda state: state.tell("warning: tile 7 is masked out."),  # in the last second
        },
    )
    assert lines == ["first: resuming from step 4 with 2 workers", "warning: tile 7 is masked out."]


SLOW = ray.exceptions.GetTimeoutError("Get timed out: some object(s) not ready.")


@pytest.mark.parametrize(
    "error", [SLOW, ray.exceptions.ActorUnavailableError("the network is down", None)], ids=["slow", "cut off"]
)
def test_a_slow_answer_ends_nothing_and_loses_no_line(seen: Callable[..., list[str]], error: Exception) -> None:
    events = {
        1: lambda state: state.tell("resuming from step 4 with 2 workers"),  # requested while Ray is slow
        4: lambda state: state.tell("warning: tile 7 is masked out."),
        6: lambda state: state.show(snapshot(3)),
    }
    lines = seen(8, events, dict.fromkeys((1, 2, 3, 4) if error is SLOW else (2, 3), error))
    assert lines[:2] == ["first: resuming from step 4 with 2 workers", "warning: tile 7 is masked out."]
    assert "24/796 tiles" in lines[2]


def test_a_board_that_never_answers_leaves_the_minutes(seen: Callable[..., list[str]]) -> None:
    slow = dict.fromkeys(range(200), SLOW)
    assert seen(130, {}, slow) == [f"first: {STARTING} for 1:00; {ROOM}", f"first: {STARTING} for 2:00; {ROOM}"]


def test_a_board_that_is_dead_is_said_to_be(seen: Callable[..., list[str]]) -> None:
    dead = ray.exceptions.ActorDiedError()
    reason = "The actor died unexpectedly before finishing this task"
    assert seen(100, {}, {3: dead}) == [f"first: progress is no longer shown; the run continues ({reason})"]
    assert seen(3, {}, {3: dead}) == []  # at the end of the run the actor may be gone


def test_a_run_without_a_first_step_says_each_minute_what_it_is_at(seen: Callable[..., list[str]]) -> None:
    assert seen(59, {}) == []
    assert seen(130, {}) == [f"first: {STARTING} for 1:00; {ROOM}", f"first: {STARTING} for 2:00; {ROOM}"]


def test_a_run_that_stands_still_says_for_how_long_and_is_silent_once_it_moves(
    seen: Callable[..., list[str]],
) -> None:
    events = {
        10: lambda state: state.show(snapshot(1)),
        40: lambda state: state.show(snapshot(2)),
        45: lambda state: state.show(snapshot(2)),  # a repeated snapshot is no progress
        170: lambda state: state.show(snapshot(3)),
    }
    lines = seen(225, events)
    still = [line for line in lines if "no step" in line]
    assert still == [f"first: no step for 1:00; {ROOM}", f"first: no step for 2:00; {ROOM}"]
    assert [line for line in lines if "8/796 tiles" in line]
    assert lines.index(still[0]) > 0  # after the steps


def test_the_room_counts_living_nodes_and_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}, {"Alive": True}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "memory": 1e9})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.5, "memory": 1e9})
    assert progress_actor._describe_capacity() == "the cluster has 2 nodes and 0.5 of 8 CPUs free"
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 8.0})
    assert progress_actor._describe_capacity() == "the cluster has 2 nodes and 8 of 8 CPUs free and 0 of 1 GPUs free"
    monkeypatch.setattr(ray, "cluster_resources", dict)
    assert progress_actor._describe_capacity() == "the cluster has 2 nodes and no CPU"


def test_checkpoints_are_noted_once_whether_steps_are_shown_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[str] = []
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    monkeypatch.setattr(ProgressLine, "note_checkpoint", lambda line: noted.append("checkpoint"))
    state, rounds = ProgressActor(), iter(range(4))
    state.note_checkpoint()

    def wait(timeout: float) -> bool:
        now = next(rounds)
        if now == 2:
            state.note_checkpoint()
        return now == 3

    stop: Any = SimpleNamespace(wait=wait)
    with contextlib.closing(ProgressLine("first", quiet=True)) as line:
        progress_actor._show(actor(state), line, stop)
    assert noted == ["checkpoint"] * 2


def test_what_is_told_until_the_block_ends_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    state = ProgressActor()
    with show_progress(actor(state), "first"):
        state.tell("going on")
    assert capsys.readouterr().err == "first: going on\n"
    assert "board" not in {thread.name for thread in threading.enumerate()}
