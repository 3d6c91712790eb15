"""Pieces of work handed to Ray: what is under way is cancelled when the caller leaves, and left to Ray in an ending."""

from typing import Any

import pytest

from histill.cluster import parallel

pytestmark = pytest.mark.unit


@pytest.fixture
def cancelled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The references that are cancelled; the first that is waited for is done."""
    found: list[int] = []

    class Remote:
        def options(self, **_: Any) -> "Remote":
            return self

        def remote(self, item: int) -> int:
            return item

    monkeypatch.setattr("ray.remote", lambda _: Remote())
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr("ray.wait", lambda references, **_: (references[:1], references[1:]))
    monkeypatch.setattr("ray.get", lambda reference: reference)
    monkeypatch.setattr("ray.cancel", lambda reference, **_: found.append(reference))
    return found


@pytest.mark.parametrize(("ending", "expected"), [(False, [2]), (True, [])])
def test_leaving_early_cancels_unless_the_process_ends(
    cancelled: list[int], ending: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "is_interrupted", lambda: ending)
    results = parallel.map_tasks(lambda item: item, [1, 2, 3])
    assert next(results) == 1
    results.close()  # type: ignore[attr-defined]
    assert cancelled == expected
