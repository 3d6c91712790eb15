"""A sweep: Ray Tune trials on workers or in process; poor ones are stopped early and release their resources."""

import json
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
from histill.config.common import Storage, Tracking
from histill.config.load import validate
from histill.config.search_students import SearchConfig
from histill.errors import InputError
from histill.local.tracking import TrackingServer
from histill.registry.mlflow_runs import open_run
from histill.registry.versions import register
from histill.search.configs import SEARCHES
from histill.search.results import Sweep
from histill.search.sweep import make_searcher, prepare_sweep, run_sweep
from histill.search.trial import name_trial
from histill.storage.control import json_bytes
from histill.storage.uris import join
from histill.tiles.manifest import Manifest
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.ray_local
TEMPERATURE = "loss.soft_cross_entropy.temperature"

STORAGE = Storage()
TRIALS, MANY = 4, 5
EPOCHS = 3
EVERY = 10_000  # limit of Ray's state API, which defaults to 100


@pytest.fixture(scope="module")
def searching(small_run: dict[str, Any], tiles: Manifest) -> Callable[..., SearchConfig]:
    """`make(name, **keys)`: a random sweep of four trials, two at once."""

    def make(name: str, **keys: Any) -> SearchConfig:
        data = {
            **small_run,
            "name": name,
            "data": {**small_run["data"], "tiles": tiles.uri},
            "optimizer": {"epochs": EPOCHS},
            "workers": {"count": 1, "cpus": 0.5},
            "tracking": {**small_run["tracking"], "experiment": name},
            "space": {
                "optimizer.lr": {"loguniform": (1e-6, 1e-2)},
                TEMPERATURE: {"choice": (1.0, 2.0, 4.0)},
            },
            "trials": TRIALS,
            "concurrent": 2,
            "sampler": "random",
        }
        data = {**data, **keys}
        return validate(SEARCHES.chosen(data), data, "the test")

    return make


@dataclass(frozen=True)
class Holder:
    """An actor or a placement group that holds resources of the cluster."""

    what: str
    cpus: float  # 0 if a placement group holds them


def holders() -> dict[str, Holder]:
    """Holders of resources by id, without tasks, which end by themselves."""
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
    """Holders of resources before the first trial, left by other tests."""
    return frozenset(holders())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tile cache of the trials of `sweep`."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def scraped_sweep(
    searching: Callable[..., SearchConfig],
    tracking: TrackingServer,
    held_before: frozenset[str],
    cache: Path,
    tiles: Manifest,
    scrape: Callable[[], Any],
) -> tuple[Sweep, Any]:
    """The sweep, and what was scraped meanwhile."""
    config = searching(
        "sweep",
        tracking={"experiment": "sweep"},
        register_best="swept",
        data={"batch_size": 4, "decode_threads": 1, "tiles": tiles.uri, "cache_decoded": True},
        storage={"cache": {"folder": str(cache), "max_gb": 1.0}},
    )
    env = {"MLFLOW_TRACKING_URI": tracking.uri}  # the driver's; the trials' workers lack it
    with patch.dict(os.environ, env), scrape() as scraped:
        return run_sweep(prepare_sweep(config), open_run, registered(config, tracking)), scraped


@pytest.fixture(scope="module")
def sweep(scraped_sweep: tuple[Sweep, Any]) -> Sweep:
    return scraped_sweep[0]


def registered(config: SearchConfig, tracking: TrackingServer) -> Callable[[str, str, dict[str, Any]], str]:
    def make(model: str, name: str, record: dict[str, Any]) -> str:
        return register(model, name, {"sweep.json": json_bytes(record)}, Tracking(uri=tracking.uri), STORAGE)

    return make


def test_the_hopeless_trials_stop_early(sweep: Sweep) -> None:
    epochs = [trial.epochs for trial in sweep.trials]
    assert len(epochs) == TRIALS
    assert [trial.error for trial in sweep.trials] == [None] * TRIALS
    assert max(epochs) == EPOCHS
    assert min(epochs) < EPOCHS
    scores = [trial.quality for trial in sweep.trials]
    assert scores == sorted(scores, reverse=True)
    assert all(trial.costs["gmacs"] > 0 for trial in sweep.trials)
    assert sweep.best.trial in sweep.front
    assert {frozenset(trial.values) for trial in sweep.trials} == {frozenset({"optimizer.lr", TEMPERATURE})}


def test_the_resources_of_all_trials_are_given_back(sweep: Sweep, held_before: frozenset[str]) -> None:
    check_given_back(held_before)


def check_given_back(held_before: frozenset[str]) -> None:
    """Wait until no actor or placement group of a trial is left and all other CPUs are free; fail otherwise."""
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


@pytest.fixture(scope="module")
def many(searching: Callable[..., SearchConfig], held_before: frozenset[str]) -> Sweep:
    """Short trials, in Tune's processes, that optimize the front of quality and MACs; two at once use most CPUs."""
    # The seed draws both rates for the first two trials, and both again later. All cost the same, so the worse rate is
    # dominated when it comes again, in whatever order the trials report.
    space = {"optimizer.lr": {"choice": (1e-9, 1e-2)}}
    keys = {"trials": MANY, "concurrent": 2, "objective": "front", "cost": "gmacs", "sampler": "tpe"}
    keys |= {"workers": {"count": 0, "cpus": 1.25}, "reduction": 4}  # one that is dominated is stopped
    config = searching("many", space=space, optimizer={"epochs": 2}, tracking={"uri": None}, **keys)
    return run_sweep(prepare_sweep(config), open_run)


def test_trials_that_seek_the_front_are_stopped_and_give_back_what_they_held(
    many: Sweep, held_before: frozenset[str]
) -> None:
    """If stopped trials kept their resources, two of them would leave too little for later ones."""
    assert [trial.error for trial in many.trials] == [None] * MANY
    stopped = [trial for trial in many.trials if trial.epochs == 1]
    assert 0 < len(stopped) < MANY
    assert all(trial.costs["gmacs"] > 0 for trial in many.trials)
    assert set(many.front) & {trial.trial for trial in many.trials if trial.epochs == 2}
    check_given_back(held_before)


def test_a_sweep_repeated_draws_and_scores_alike(searching: Callable[..., SearchConfig]) -> None:
    """That further draws are alike, `test_a_seed_draws_the_same_values_again` shows without training."""

    def search(name: str) -> list[tuple[dict[str, Any], float]]:
        keys = {"trials": 1, "scheduler": "none", "sampler": "tpe", "tracking": {"uri": None}, "cost": "latency_ms"}
        keys |= {"workers": {"count": 0}}
        sweep = run_sweep(prepare_sweep(searching(name, optimizer={"epochs": 1}, **keys)), open_run)
        assert all(trial.costs["latency_ms"] > 0 for trial in sweep.trials)
        return [(trial.values, trial.quality) for trial in sweep.trials]

    assert search("once") == search("again")


def test_a_sweep_is_watched_by_its_metrics(scraped_sweep: tuple[Sweep, Any]) -> None:
    """By the states of its trials, and each trial as a run is; workers say how often their cache had what they read."""
    sweep, scraped = scraped_sweep
    job = {"kind": "search_students", "run": "sweep"}
    states = {"running": 0, "waiting": 0, "done": TRIALS, "failed": 0}
    assert scraped.find("ray_histill_trials", **job, trial="") == states
    for trial in sweep.trials:
        # each second; what is set in a worker's last one ends with it
        assert scraped.find("ray_histill_epoch", **job, trial=trial.trial)[""] >= 1
        assert scraped.find("ray_histill_data_wait_ratio", **job, trial=trial.trial).keys() == {"0"}
    assert scraped.find("ray_histill_cache_misses_total", **job)["0"] > 0
    assert scraped.find("ray_histill_cache_hits_total", **job)["0"] > 0


def test_the_trials_share_their_decoded_tiles(sweep: Sweep, cache: Path, tiles: Manifest) -> None:
    """One file per row group of the training and validation splits, since all trials use one tile size."""
    groups = {
        (row["shard"], row["row_group"]) for row in read_table(tiles).to_pylist() if row["split"] in ("train", "val")
    }
    assert len(list(cache.rglob("*.arrow"))) == len(groups)


def test_the_folder_of_the_sweep_means_the_best_model(sweep: Sweep, searching: Callable[..., SearchConfig]) -> None:
    best = model_folder.resolve(sweep.run, STORAGE)
    assert best == sweep.best.model
    assert best.startswith(join(sweep.run, "trials"))
    model_folder.load(best, STORAGE)
    with pytest.raises(InputError, match="is finished"):
        prepare_sweep(searching("sweep", register_best="swept"))


def test_every_trial_is_a_child_of_the_sweep(sweep: Sweep, tracking: TrackingServer, tmp_path: Path) -> None:
    client = MlflowClient(tracking.uri, tracking.uri)
    runs = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_id for run in parents] == [sweep.tracking_run]
    assert parents[0].info.status == "FINISHED"
    assert parents[0].data.metrics["best_val_dice"] == pytest.approx(sweep.best.quality)
    shown = {Path(each.path).stem for each in client.list_artifacts(parents[0].info.run_id, "pictures")}
    assert shown == {"front", "values"}
    table = json.loads(
        Path(client.download_artifacts(parents[0].info.run_id, "trials.json", str(tmp_path))).read_text()
    )
    assert [row[0] for row in table["data"]] == [trial.trial for trial in sweep.trials]
    assert table["columns"][-4:] == ["val_dice", "gmacs", "front", "error"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == sweep.tracking_run]
    assert len(children) == TRIALS
    by_name = {run.info.run_name.partition(" ")[0]: run for run in children}
    assert set(by_name) == {trial.trial for trial in sweep.trials}
    for trial in sweep.trials:
        run = by_name[trial.trial]
        assert run.info.status == ("FINISHED" if trial.epochs == EPOCHS else "KILLED")
        assert run.info.run_name == name_trial(trial.trial, trial.values)
        assert run.data.metrics["workload/gmacs"] == pytest.approx(trial.costs["gmacs"])
        assert run.data.params[TEMPERATURE] == str(trial.values[TEMPERATURE])
        assert len(client.get_metric_history(run.info.run_id, "val/dice")) >= trial.epochs


def test_the_best_student_is_registered_with_its_search(sweep: Sweep, tracking: TrackingServer, tmp_path: Path) -> None:
    client = MlflowClient(tracking.uri, tracking.uri)
    assert sweep.version == "1"
    version = client.get_model_version("swept", "1")
    assert version.tags["model_digest"] == model_folder.load(str(sweep.best.model), STORAGE)[2]
    trained = client.get_run(client.get_logged_model(version.tags["logged_model"]).source_run_id)
    assert trained.data.tags["mlflow.parentRunId"] == sweep.tracking_run  # the trial's own run
    record = json.loads(Path(client.download_artifacts(version.run_id, "sweep.json", str(tmp_path))).read_text())
    assert record["space"][TEMPERATURE] == {"choice": [1.0, 2.0, 4.0]}
    assert [trial["trial"] for trial in record["trials"]] == [trial.trial for trial in sweep.trials]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_seed_draws_the_same_values_again(searching: Callable[..., SearchConfig], sampler: str) -> None:
    def drawn(seed: int) -> list[dict[str, Any]]:
        asked = make_searcher(searching("drawn", sampler=sampler, seed=seed), "val_dice")
        return [asked.suggest(f"trial-{number}") for number in range(TRIALS)]

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
    prepared = prepare_sweep(config)
    with pytest.raises(InputError, match=r"every trial of .* failed") as raised:
        run_sweep(prepared, open_run)
    assert shard in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert "Traceback" not in "".join(capfd.readouterr())
