"""What each worker does around the training loop."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from histill.train import worker
from histill.train.worker import run_worker

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("error", [None, RuntimeError("the network between workers broke")])
def test_warnings_go_to_the_user_while_it_trains(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, told = logging.getLogger("histill.stream"), []

    def train(*_: Any) -> None:
        logger.info("of no interest")
        logger.warning("tile %d is masked out.", 7)
        if error is not None:
            raise error

    monkeypatch.setattr(worker, "_train", train)
    spec: Any = None
    session: Any = SimpleNamespace(rank=0, tell=told.append)
    if error is None:
        run_worker(spec, None, session)
    else:
        with pytest.raises(RuntimeError) as caught:
            run_worker(spec, None, session)
        assert caught.value is error
    logger.warning("of a time without a run")
    assert told == ["warning: tile 7 is masked out."]
