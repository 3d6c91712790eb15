"""The cleaner of a run ends only once the run's resources are free."""

from typing import Any

import pytest
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner

from histill.train.ray import cleaner
from histill.train.ray.cleaner import EndingCleaner

pytestmark = pytest.mark.unit


def test_the_cleaner_waits_until_the_group_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's request to remove it is asynchronous, and lost where the process is killed right after it."""
    said: list[str] = []
    states = iter([False, False, True])

    def is_removed(self: Any, group: Any) -> bool:
        said.append("asked")
        return next(states)

    monkeypatch.setattr(PlacementGroupCleaner, "_cleanup_placement_group", lambda self, group: said.append("removed"))
    monkeypatch.setattr(PlacementGroupCleaner, "_is_placement_group_removed", is_removed)
    monkeypatch.setattr(cleaner.time, "sleep", lambda seconds: None)
    EndingCleaner._cleanup_placement_group(object.__new__(EndingCleaner), object())
    assert said == ["removed", "asked", "asked", "asked"]
    EndingCleaner._cleanup_placement_group(object.__new__(EndingCleaner), None)  # a run that had none yet
    assert said[-1] == "removed"
