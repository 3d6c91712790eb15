"""A finished run of two workers, which several modules look at, and how a test watches a run."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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
class Finished:
    """A run, and what it reported."""

    config: PretrainConfig
    trained: Any
    reports: list[dict[str, Any]]


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
    trained = train_run(prepare_run(config), open_run, callbacks=[observer.callback()])
    return Finished(config, trained, observer.reports())
