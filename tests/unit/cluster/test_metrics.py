"""Metrics without Ray, and what is published where Ray is."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, get_args

import pyarrow as pa
import pytest

from histill import counts
from histill.cluster import metrics
from histill.cluster.metrics import METRICS, Job, Publisher, current_job, name_job
from histill.cluster.parallel import _Actor

pytestmark = pytest.mark.unit

FIRST = Job("pretrain_student", "first")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, dict[str, str]]]:
    """What is published: name, value and tags."""
    found: list[tuple[str, float, dict[str, str]]] = []

    class Recorded:
        def __init__(self, name: str) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert tags.keys() == set(METRICS[self.name].all_tags)
            found.append((self.name, value, tags))

        inc = set

    monkeypatch.setattr(metrics, "_has_ray", lambda: True)
    monkeypatch.setattr(metrics, "_metric", Recorded)
    counts.take_counts()
    return found


def wait_until(done: Callable[[], Any]) -> None:
    until = time.monotonic() + 30
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_without_ray_nothing_is_published_and_ray_is_not_imported() -> None:
    code = """
import sys, threading
from histill.cluster.metrics import Job, Publisher, name_job
with name_job(Job("pretrain_student", "first")):
    publisher = Publisher()
publisher.set("step", 1)
publisher.close()
print("ray" in sys.modules, threading.active_count())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False 1\n"


def test_without_a_job_nothing_is_published(published: list[Any]) -> None:
    with closing(Publisher()) as publisher:
        publisher.set("step", 1)
        counts.count_event("cache_hits")
    assert published == []
    assert counts.take_counts() == {"cache_hits": 1}  # kept for a job


def test_gauges_have_the_tags_of_their_job_and_worker(published: list[Any]) -> None:
    with name_job(FIRST), closing(Publisher(rank="1")) as publisher:
        publisher.set("step", 7)
        publisher.set("data_wait_ratio", 0.25)
        publisher.set("trials", 2, state="done")
    job = {"kind": "pretrain_student", "run": "first", "trial": ""}
    assert published == [
        ("step", 7, job),
        ("data_wait_ratio", 0.25, job | {"rank": "1"}),
        ("trials", 2, job | {"state": "done"}),
    ]


def test_gauges_are_set_again_with_their_newest_value_until_they_are_closed(
    published: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_SET_AGAIN_S", 0.01)
    with name_job(FIRST):
        publisher = Publisher()
    publisher.set("step", 1)
    publisher.set("step", 2)
    wait_until(lambda: len(published) > 5)
    publisher.close()
    wait_until(lambda: "metrics" not in {thread.name for thread in threading.enumerate()})
    assert [value for _, value, _ in published] == [1] + [2] * (len(published) - 1)
    publisher.set("step", 3)
    assert published[-1][1] == 2


def test_events_are_published_once_whether_while_it_goes_on_or_at_its_end(
    published: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_SET_AGAIN_S", 0.01)
    with name_job(FIRST):
        publisher = Publisher("0")
    counts.count_event("storage_retries", 2)
    wait_until(lambda: published)
    counts.count_event("storage_retries")
    publisher.close()
    assert sum(number for _, number, _ in published) == 3
    assert {(name, tags["rank"], tags["run"]) for name, _, tags in published} == {("storage_retries", "0", "first")}


def test_once_closed_no_thread_publishes_anything(published: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray may be shut down next, and a thread that is still at it would end the process."""
    monkeypatch.setattr(metrics, "_SET_AGAIN_S", 0.001)
    inside, go_on = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, name: str) -> None:
            self.name = name

        def set(self, value: float, _: dict[str, str]) -> None:
            if threading.current_thread().name == "metrics":
                inside.set()
                go_on.wait(30)
            published.append((self.name, value, {}))

    monkeypatch.setattr(metrics, "_metric", Slow)
    with name_job(FIRST):
        publisher = Publisher()
    publisher.set("step", 1)
    assert inside.wait(30)
    threading.Timer(0.2, go_on.set).start()
    publisher.close()
    assert "metrics" not in {thread.name for thread in threading.enumerate()}


def test_nothing_is_published_by_a_ray_that_was_shut_down(
    published: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with name_job(FIRST):
        publisher = Publisher()
    publisher.set("step", 1)
    monkeypatch.setattr(metrics, "_has_ray", lambda: False)
    counts.count_event("storage_retries")
    publisher.set("step", 2)
    publisher.close()
    assert [value for _, value, _ in published] == [1]
    assert counts.take_counts() == {"storage_retries": 1}  # kept for another Ray


def test_an_actor_publishes_the_events_of_each_item(published: list[Any]) -> None:
    """Ray ends it without notice when there are no more."""

    def make() -> Callable[[str], None]:
        return lambda item: counts.count_event("storage_retries", len(item))

    actor = _Actor(make, (), FIRST)
    actor(pa.table({"item": ["a", "bb"]}))
    assert [(name, number, tags["run"]) for name, number, tags in published] == [("storage_retries", 3, "first")]
    actor._publisher.close()


def test_a_part_of_a_job_is_not_named_for_itself() -> None:
    """A trial's run belongs to its sweep, and the ingest of slides to the prediction that asked for it."""
    with name_job(Job("search_students", "sizes", "a1b2")):
        with name_job(FIRST):
            assert current_job() == Job("search_students", "sizes", "a1b2")
        with name_job(None):
            assert current_job() == Job("search_students", "sizes", "a1b2")
    assert current_job() is None


def test_every_event_is_a_counter_and_every_counter_an_event() -> None:
    assert set(get_args(counts.Event)) == {name for name, metric in METRICS.items() if metric.counter}


def test_ray_accepts_every_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under names that Prometheus allows, and that its client does not change."""
    metrics._metric.cache_clear()
    for name, metric in METRICS.items():
        info = metrics._metric(name).info
        assert (info["name"], info["tag_keys"]) == (f"histill_{name}", metric.all_tags)
        assert info["description"]
        assert not name.endswith("_total")
    assert METRICS["cache_hits"].exported == "ray_histill_cache_hits_total"
    assert METRICS["step"].exported == "ray_histill_step"


def test_a_value_is_not_overwritten_by_the_one_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []
    again = threading.Event()

    class Slow:
        def set(self, value: float, tags: dict[str, str]) -> None:
            if threading.current_thread().name == "metrics":
                again.set()
                time.sleep(0.1)
            found.append(value)

    monkeypatch.setattr(metrics, "_has_ray", lambda: True)
    monkeypatch.setattr(metrics, "_metric", lambda _: Slow())
    monkeypatch.setattr(metrics, "_SET_AGAIN_S", 0.01)
    with name_job(FIRST), closing(Publisher()) as publisher:
        publisher.set("step", 1)
        assert again.wait(30)
        publisher.set("step", 2)
    assert found[-1] == 2
