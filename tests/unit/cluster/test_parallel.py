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


@pytest.mark.parametrize(
    ("nodes", "busy", "units", "at_once", "expected"),
    [
        ([4], 0, 1, None, parallel.Share(None, 4)),
        ([4], 0, 3, None, parallel.Share(None, 1)),
        ([4], 0, 100, None, parallel.Share(None, 1)),
        ([8, 8, 0], 0, 1, None, parallel.Share(None, 8, spread=True)),  # the head takes no work
        ([8, 8], 0, 2, None, parallel.Share(None, 8)),
        ([8, 2], 0, 1, None, parallel.Share(None, 2, spread=True)),
        ([8, 8], 0, 1, 4, parallel.Share(None, 4)),
        ([8, 8], 0, 6, 4, parallel.Share(None, 1)),
        ([8, 8], 1.5, 1, None, parallel.Share(None, 6, spread=True)),  # both may be used on one node
        ([4], 4, 1, None, parallel.Share(None, 1)),
    ],
)
def test_a_few_units_share_the_cpus_of_a_cluster(
    nodes: list[int],
    busy: float,
    units: int,
    at_once: int | None,
    expected: parallel.Share,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [{"Alive": True, "Resources": {"CPU": float(cpus)} if cpus else {}} for cpus in nodes]
    monkeypatch.setattr("ray.nodes", lambda: [*found, {"Alive": False, "Resources": {"CPU": 64.0}}])
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": sum(nodes) - busy} if busy < sum(nodes) else {})
    assert parallel.share_cpus(units, at_once, here=False) == expected


@pytest.mark.parametrize(
    ("units", "at_once", "expected"),
    [(1, None, (1, 6)), (4, None, (4, 3)), (6, None, (6, 2)), (500, None, (6, 1)), (1, 2, (1, 2)), (3, 1, (1, 1))],
)
def test_a_few_units_share_the_cpus_of_a_process(
    units: int, at_once: int | None, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "count_cpus", lambda: 6)
    assert parallel.share_cpus(units, at_once, here=True) == parallel.Share(*expected)
