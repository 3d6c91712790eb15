"""What a worker's failure means for the run: only what no retry can mend ends it."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from histill.errors import AwayError, HistillError, InputError
from histill.train import worker
from histill.train.board import Board
from histill.train.worker import Assignment, run_worker

pytestmark = pytest.mark.unit


def run(error: Exception | None, state: Board, monkeypatch: pytest.MonkeyPatch) -> list[Assignment]:
    """A worker whose training ends with `error`; the assignments that were trained."""
    trained: list[Assignment] = []

    def train(assignment: Assignment) -> None:
        trained.append(assignment)
        if error is not None:
            raise error

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(ray, "get", lambda value: value)
    names = ("fatal", "fail", "tell")
    board: Any = SimpleNamespace(**{name: SimpleNamespace(remote=getattr(state, name)) for name in names})
    prepared: Any = None
    run_worker(Assignment(prepared, board, None))
    return trained


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (InputError("the bucket does not exist."), True),
        (HistillError("the loss is not a number."), True),
        (AwayError("the server cannot be reached."), False),
        (RuntimeError("the network between workers broke"), False),
        (MemoryError("no memory is left"), False),
    ],
)
def test_what_may_pass_is_left_to_the_next_workers(
    error: Exception, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = Board()
    with pytest.raises(type(error)) as caught:
        run(error, state, monkeypatch)
    assert caught.value is error
    assert state.fatal() is (error if ends else None)


def test_workers_of_a_run_that_has_failed_for_good_do_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    state, error = Board(), InputError("culprit.")
    state.fail(error)
    with pytest.raises(InputError) as caught:
        run(None, state, monkeypatch)
    assert caught.value is error


def test_a_worker_without_a_fault_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    state = Board()
    assert len(run(None, state, monkeypatch)) == 1
    assert state.fatal() is None
