"""A finished run of two workers, which several modules look at, and how a test watches a run."""

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from histill.config.pretrain_student import PretrainConfig
from histill.tiles.manifest import Manifest


@dataclass(frozen=True)
class Observer:
    """Notes every report of a run in the file at `path`, and kills a worker after so many of them, once."""

    path: Path
    kill_after: int | None = None

    def callback(self) -> Any:
        import ray.train

        path, kill_after = self.path, self.kill_after

        class Reports(ray.train.UserCallback):
            def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
                with path.open("a") as file:
                    file.write(json.dumps({**metrics[0], "workers": len(metrics)}) + "\n")
                if len(path.read_text().splitlines()) == kill_after:
                    from ray.util.state import list_actors

                    alive = list_actors(filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")])
                    os.kill(alive[-1].pid, signal.SIGKILL)

        return Reports()

    def reports(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture(scope="session")
def observe() -> type[Observer]:
    return Observer


@dataclass(frozen=True)
class Scraped:
    """What Prometheus would have scraped from the node: the newest value of each of histill's series."""

    series: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(default_factory=dict)
    begun: float = field(default_factory=time.time)

    def find(self, name: str, **tags: str) -> dict[str, float]:
        """The values of the metric `name` with these tags, by rank or state."""
        found = {}
        for (metric, labels), value in self.series.items():
            if metric == name and tags.items() <= dict(labels).items():
                found[dict(labels).get("rank") or dict(labels).get("state", "")] = value
        return found


UNCHANGED = 5  # scrapes


@contextmanager
def scraping() -> Iterator[Scraped]:
    """Scrape the node's metrics during the block, and then until its last ones were exported: until nothing changes."""
    import ray

    (node,) = (node for node in ray.nodes() if node["Alive"])
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    scraped, ended = Scraped(), threading.Event()

    def scrape() -> None:
        unchanged = 0
        while unchanged < UNCHANGED:
            if ended.wait(1.0):
                time.sleep(1.0)  # processes export their metrics each second, and later on a loaded machine
            before = dict(scraped.series)
            with suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
                for family in text_string_to_metric_families(answer.read().decode()):
                    for sample in family.samples if "histill" in family.name else ():
                        scraped.series[sample.name, frozenset(sample.labels.items())] = sample.value
            unchanged = unchanged + 1 if ended.is_set() and scraped.series == before else 0

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield scraped
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="session")
def scrape() -> Callable[[], Any]:
    return scraping


@dataclass(frozen=True)
class Finished:
    """A run, what it reported, and what was scraped meanwhile."""

    config: PretrainConfig
    trained: Any
    reports: list[dict[str, Any]]
    scraped: Scraped


@pytest.fixture(scope="session")
def two(
    tiles: Manifest, shared_pretraining: Callable[..., PretrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """Of two workers and two epochs."""
    from histill.registry.mlflow_runs import open_run
    from histill.train.launch import train_run
    from histill.train.prepare import prepare_run

    config, observer = (
        shared_pretraining("two-workers", tiles.uri),
        Observer(tmp_path_factory.mktemp("two") / "reports"),
    )
    with scraping() as scraped:
        trained = train_run(prepare_run(config), open_run, callbacks=[observer.callback()])
    return Finished(config, trained, observer.reports(), scraped)
