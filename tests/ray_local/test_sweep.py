"""A sweep: trials by Ray Tune, each a run of Ray Train, the hopeless ones stopped and their resources given back."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import ray
from mlflow import MlflowClient
from ray.util.state import list_actors, list_placement_groups, list_tasks

from histill.artifacts import model_folder
from histill.config.common import Storage
from histill.config.load import validate
from histill.config.search import SearchConfig
from histill.errors import InputError
from histill.local.tracking import TrackingServer
from histill.registry.runs import open_run
from histill.search.sweep import Sweep, _searcher, check_sweep, run_sweep
from histill.storage.uris import join
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.ray_local

STORAGE = Storage()
TRIALS = 4
EPOCHS = 3
EVERY = 10_000  # of Ray's lists, which else end after 100


@pytest.fixture(scope="module")
def searching(small_run: dict[str, Any], tiles: Manifest) -> Callable[..., SearchConfig]:
    """`make(name, **keys)`: a random sweep of four trials, two at once."""

    def make(name: str, **keys: Any) -> SearchConfig:
        data = {
            **small_run,
            "name": name,
            "data": {**small_run["data"], "tiles": tiles.uri},
            "optimiser": {"epochs": EPOCHS},
            "workers": {"count": 1, "cpus": 0.5},
            "tracking": {**small_run["tracking"], "experiment": name},
            "space": {"optimiser.lr": {"loguniform": (1e-6, 1e-2)}, "loss.temperature": {"choice": (1.0, 2.0, 4.0)}},
            "trials": TRIALS,
            "concurrent": 2,
            "sampler": "random",
        }
        return validate(SearchConfig, {**data, **keys}, "the test")

    return make


@pytest.fixture(scope="module")
def free_before(tiles: Manifest) -> float:
    """CPUs free before the sweep: tests share one Ray, and what an earlier one still holds is no trial's."""
    return ray.available_resources()["CPU"]


@dataclass(frozen=True)
class Holder:
    """An actor or a placement group that holds resources of the cluster."""

    what: str
    cpus: float  # 0 where a placement group holds them


def holders() -> dict[str, Holder]:
    """Who holds resources, by the holder's id; tasks are left out, which end by themselves."""
    held = {}
    for actor in list_actors(filters=[("state", "!=", "DEAD")], detail=True, limit=EVERY):
        if actor.required_resources:
            what = f"actor {actor.class_name}, {actor.state}, pid {actor.pid}, of {actor.required_resources}"
            held[actor.actor_id] = Holder(what, actor.required_resources.get("CPU", 0))
    for group in list_placement_groups(filters=[("state", "!=", "REMOVED")], detail=True, limit=EVERY):
        bundles = [bundle["unit_resources"] for bundle in group.bundles]
        what = f"placement group {group.placement_group_id}, {group.state}, of {bundles}"
        held[group.placement_group_id] = Holder(what, sum(bundle.get("CPU", 0) for bundle in bundles))
    return held


@pytest.fixture(scope="module")
def held_before(tiles: Manifest) -> frozenset[str]:
    """Who held resources before the first trial: what other tests have left."""
    return frozenset(holders())


@pytest.fixture(scope="module")
def sweep(searching: Callable[..., SearchConfig], tracking: TrackingServer, held_before: frozenset[str]) -> Sweep:
    config = searching("sweep", tracking={"experiment": "sweep"})
    check_sweep(config)
    with patch.dict(os.environ, {"MLFLOW_TRACKING_URI": tracking.uri}):  # the driver's; the trials' workers lack it
        return run_sweep(config, open_run)


def test_the_hopeless_trials_stop_early(sweep: Sweep) -> None:
    epochs = [trial.epochs for trial in sweep.trials]
    assert len(epochs) == TRIALS
    assert [trial.error for trial in sweep.trials] == [None] * TRIALS
    assert max(epochs) == EPOCHS
    assert min(epochs) < EPOCHS
    scores = [trial.val_dice for trial in sweep.trials]
    assert scores == sorted(scores, reverse=True)
    assert all(trial.gmacs is not None and trial.gmacs > 0 for trial in sweep.trials)
    assert sweep.best.trial in sweep.front
    assert {frozenset(trial.values) for trial in sweep.trials} == {frozenset({"optimiser.lr", "loss.temperature"})}


def test_the_resources_of_all_trials_are_given_back(sweep: Sweep, held_before: frozenset[str]) -> None:
    """No actor or placement group of a trial is left, nor are CPUs taken that nobody seems to hold."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        held = holders()
        left = [holder.what for key, holder in held.items() if key not in held_before]
        others = [holder for key, holder in held.items() if key in held_before]
        free, whole = ray.available_resources().get("CPU", 0), ray.cluster_resources()["CPU"]
        if not left and free + sum(holder.cpus for holder in others) > whole - 0.01:
            return
        time.sleep(1)
    tasks = list_tasks(filters=[("state", "=", "RUNNING"), ("type", "=", "NORMAL_TASK")], detail=True, limit=EVERY)
    pytest.fail(
        f"{free} of {whole} CPUs are free; of the trials are left: {left or 'none that Ray lists'}; of other tests: "
        f"{[holder.what for holder in others]}; of tasks: {[(task.name, task.worker_pid) for task in tasks]}"
    )


def test_the_folder_of_the_sweep_means_the_best_model(sweep: Sweep, searching: Callable[..., SearchConfig]) -> None:
    best = model_folder.resolve(sweep.run, STORAGE)
    assert best == sweep.best.model
    assert best.startswith(join(sweep.run, "trials"))
    model_folder.load(best, STORAGE)
    with pytest.raises(InputError, match="is finished"):
        check_sweep(searching("sweep"))


def test_every_trial_is_a_child_of_the_sweep(sweep: Sweep, tracking: TrackingServer) -> None:
    client = MlflowClient(tracking.uri, tracking.uri)
    runs = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_id for run in parents] == [sweep.tracking_run]
    assert parents[0].info.status == "FINISHED"
    assert parents[0].data.metrics["best_val_dice"] == pytest.approx(sweep.best.val_dice)
    (shown,) = client.list_artifacts(parents[0].info.run_id, "pictures")
    assert shown.path == "pictures/front.png"
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == sweep.tracking_run]
    assert len(children) == TRIALS
    assert {run.info.run_name for run in children} == {trial.trial for trial in sweep.trials}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_seed_draws_the_same_values_again(searching: Callable[..., SearchConfig], sampler: str) -> None:
    def drawn(seed: int) -> list[dict[str, Any]]:
        searcher = _searcher(searching("drawn", sampler=sampler, seed=seed))
        return [searcher.suggest(f"trial-{number}") for number in range(TRIALS)]

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)


def test_a_sweep_of_failures_says_why(
    searching: Callable[..., SearchConfig],
    tile_set: Callable[..., Manifest],
    truncate_shard: Callable[..., str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    truncated = tile_set(tmp_path)
    shard = truncate_shard(truncated, 0)
    config = searching("failing", trials=1, max_failures=0, data={"tiles": truncated.uri, "batch_size": 4})
    with pytest.raises(InputError, match=r"every trial of .* failed") as raised:
        run_sweep(config, open_run)
    assert shard in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert "Traceback" not in "".join(capfd.readouterr())
