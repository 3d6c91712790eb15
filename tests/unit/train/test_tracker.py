"""How a tracked run is closed when its job fails."""

from types import SimpleNamespace

import pytest

from histill.cluster.signals import Interrupted
from histill.errors import HistillError
from histill.train.tracker import close_on_error

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Interrupted(2), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (HistillError("full", code="disk-full"), "FAILED"),
        (SystemExit(1), "FAILED"),
    ],
)
def test_a_run_that_does_not_come_to_its_end_is_closed(error: BaseException, status: str) -> None:
    said: list[str] = []
    with pytest.raises(type(error)), close_on_error(SimpleNamespace(finish=said.append), "run"):
        raise error
    assert said == [status]
    with pytest.raises(type(error)), close_on_error(None, "run"):  # nothing is tracked
        raise error


def test_one_that_does_is_left_to_its_owner() -> None:
    said: list[str] = []
    with close_on_error(SimpleNamespace(finish=said.append), "run"):
        pass
    assert said == []


def test_one_that_another_job_has_taken_over_is_left_to_that(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("histill.train.claim._lost", {"run"})
    with pytest.raises(Interrupted), close_on_error(SimpleNamespace(finish=said.append), "run"):
        raise Interrupted(2)
    assert said == []
