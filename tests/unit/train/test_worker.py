"""What each worker does around the training loop."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from histill.train.ray import worker
from histill.train.ray.progress_actor import ProgressActor
from histill.train.ray.worker import Assignment, run_worker

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("error", [None, RuntimeError("the network between workers broke")])
def test_warnings_go_to_the_board_while_it_trains(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, state = logging.getLogger("histill.stream"), ProgressActor()

    def train(assignment: Assignment) -> None:
        logger.warning("tile %d is masked out.", 7)
        if error is not None:
            raise error

    monkeypatch.setattr(worker, "_train", train)
    prepared: Any = None
    board: Any = SimpleNamespace(tell=SimpleNamespace(remote=state.tell))
    if error is None:
        run_worker(Assignment(prepared, board, None))
    else:
        with pytest.raises(RuntimeError) as caught:
            run_worker(Assignment(prepared, board, None))
        assert caught.value is error
    logger.warning("of a time without a run")
    assert state.take()[1] == ["warning: tile 7 is masked out."]
