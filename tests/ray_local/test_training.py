"""Training runs on Ray Train: real workers, checkpoints in S3, and a single MLflow run across restarts."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from pyarrow import fs
from ray.util.state import get_actor

from histill.artifacts import model_folder
from histill.config.common import Storage
from histill.config.pretrain_student import PretrainConfig
from histill.errors import InputError
from histill.local.ray_head import RayHead
from histill.local.s3 import S3Server
from histill.local.tracking import TrackingServer
from histill.registry.mlflow_runs import open_run
from histill.storage.filesystems import arrow_filesystem
from histill.storage.retrying import retrying_filesystem
from histill.storage.uris import join
from histill.tiles.manifest import Manifest
from histill.train.in_process import ProcessSession
from histill.train.launch import Trained, train_run
from histill.train.newest import find_newest_checkpoint, step_of
from histill.train.prepare import prepare_run
from histill.train.ray.cleaner import EndingCleaner

pytestmark = pytest.mark.ray_local

ROOT = Path(__file__).parents[2]
STORAGE = Storage()
EPOCHS_TO_STOP = 12  # of a run that is stopped after a few steps; it must not end before
WITHIN_S = 300.0
TILES, STEPS = 16, 4  # of one epoch
Make = Callable[..., PretrainConfig]


@pytest.fixture
def client(tracking: TrackingServer) -> MlflowClient:
    return MlflowClient(tracking.uri, tracking.uri)


def only_run(client: MlflowClient, experiment: str) -> Run:
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


def train(config: PretrainConfig, *callbacks: Any) -> Trained:
    return train_run(prepare_run(config), open_run, callbacks=callbacks)


def write_config(path: Path, config: PretrainConfig) -> str:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return str(path)


def objects(uri: str) -> list[str]:
    filesystem, path = arrow_filesystem(uri, STORAGE)
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    return [info.path for info in found if info.type == fs.FileType.File]


def test_two_workers_leave_a_model_and_one_tracked_run(
    two: Any, tiles: Manifest, client: MlflowClient, s3: S3Server
) -> None:
    config, trained, seen = two.config, two.trained, two.reports
    assert trained.run == f"{config.runs}/two-workers"
    assert trained.model.startswith(trained.run)
    assert [(report["epochs"], report["tiles"], report["workers"]) for report in seen] == [(1, TILES, 2), (2, TILES, 2)]
    _, card, _ = model_folder.load(model_folder.resolve(trained.run, STORAGE), STORAGE)
    assert (card.tiles_digest, card.tile_px) == (tiles.header.digest, 64)

    run = only_run(client, config.name)
    assert (run.info.run_id, run.info.status) == (trained.tracking_run, "FINISHED")
    assert run.data.tags["kind"] == "pretrain_student"
    assert run.data.metrics["val/dice"] == pytest.approx(trained.metrics["val_dice"])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "val/dice")] == [STEPS, 2 * STEPS]
    assert {"train/loss", "train/soft_cross_entropy", "lr", "tiles_per_s", "data_wait"} <= run.data.metrics.keys()
    assert s3.secret_key not in repr(run.to_dictionary())

    filesystem, _ = arrow_filesystem(trained.run, STORAGE)
    checkpoints = {os.path.dirname(path) for path in objects(trained.run) if "/step-" in path}
    assert len(checkpoints) == 2
    for path in objects(trained.run):
        with filesystem.open_input_stream(path) as stream:
            start = stream.read(2)
        assert os.path.splitext(path)[1] in (".json", ".safetensors", ""), path
        assert start[:1] != b"\x80", path  # the first byte of a pickle
        assert start != b"PK", path  # a zip, as torch.save writes them

    with pytest.raises(InputError, match="is finished"):
        train(config)
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_a_run_is_watched_by_its_metrics(two: Any) -> None:
    """From the process that started it, and from each worker; those that nothing happened to publish no event."""
    find, job = two.scraped.find, {"kind": "pretrain_student", "run": "two-workers", "trial": ""}
    for name in ("ray_histill_step_timestamp_seconds", "ray_histill_checkpoint_timestamp_seconds"):
        assert two.scraped.begun <= find(name, **job)[""] <= time.time()
    assert find("ray_histill_step", **job) == find("ray_histill_steps_planned", **job) == {"": 2 * STEPS}
    assert find("ray_histill_epoch", **job) == {"": 2}
    assert find("ray_histill_loss", **job)[""] == pytest.approx(two.reports[-1]["loss"], rel=0.5)
    assert find("ray_histill_tiles_per_second", **job)[""] > 0
    assert find("ray_histill_work_done", **job, unit="tiles") == {"": 2 * TILES}
    waits = find("ray_histill_data_wait_ratio", **job)
    assert waits.keys() == {"0", "1"}
    assert all(0 <= wait <= 1 for wait in waits.values())
    assert not find("ray_histill_undecodable_tiles_total", **job)


@pytest.mark.parametrize("decode", ["worker", "cluster"])
def test_a_lost_worker_costs_no_tile_and_changes_no_figure(
    decode: str,
    two: Any,
    tiles: Manifest,
    pretraining: Make,
    client: MlflowClient,
    observe: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three workers, which share a batch of four tiles unevenly, give the same results as two.

    Up to the summation order in float32, which Adam's first steps amplify, since their size is independent of the
    gradient's.
    """
    # One worker is killed here; a second failure is allowed, since one of the restarted group once died without cause.
    changes = {"max_failures": 2, "workers.count": 3, "data.decode": decode}
    config = pretraining(f"lost-worker-{decode}", tiles.uri, changes)
    observer = observe(tmp_path / "reports", kill_after=1)
    trained, seen = train(config, observer.callback()), observer.reports()
    assert [(report["epochs"], report["tiles"], report["workers"]) for report in seen] == [(1, TILES, 3), (2, TILES, 3)]
    for found, expected in zip(seen, two.reports, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert found["val_dice"] == pytest.approx(expected["val_dice"], abs=1e-3)
    # from the newest checkpoint, even if Ray had not recorded it yet
    assert re.search(rf"resuming from step ({STEPS}|{2 * STEPS}) with 3 workers\n", capsys.readouterr().err)
    run = only_run(client, config.name)
    assert (run.info.run_id, run.info.status) == (trained.tracking_run, "FINISHED")


def test_a_run_ended_by_ctrl_c_goes_on_from_its_newest_checkpoint_without_ray_and_with_it(
    tiles: Manifest, pretraining: Make, client: MlflowClient, observe: Any, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Even if Ray has not recorded it: it records one report of a worker at a time. First in this process, which makes
    checkpoints that Ray does not know and removes those that it does; then on Ray, with fewer workers than at first.
    """
    config = pretraining("is_interrupted", tiles.uri, {"checkpoint_every": 1, "optimizer.epochs": EPOCHS_TO_STOP})
    command = [sys.executable, "jobs/pretrain_student.py", "-c", write_config(tmp_path / "run.yaml", config)]
    filesystem, folder = retrying_filesystem(config.runs, STORAGE)
    folder = join(folder, config.name)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as job:
        until = time.monotonic() + WITHIN_S
        while find_newest_checkpoint(filesystem, folder) is None:
            assert job.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        job.send_signal(signal.SIGINT)
        _, said = job.communicate(timeout=WITHIN_S)
    assert job.returncode == 130
    assert said.count("stopping; the newest checkpoint stays, and the same command resumes from it") == 1
    assert "Traceback" not in said
    run = only_run(client, config.name)
    assert run.info.status == "KILLED"
    path_of_newest = find_newest_checkpoint(filesystem, folder)
    assert path_of_newest is not None
    newest = step_of(path_of_newest)
    assert newest < EPOCHS_TO_STOP * STEPS

    with pytest.raises(InputError, match=r"optimizer\.lr was 0\.001 and is now 0\.01"):
        train(pretraining("is_interrupted", tiles.uri, {"optimizer.epochs": EPOCHS_TO_STOP, "optimizer.lr": 0.01}))

    report, kept = ProcessSession.report, []

    def report_three(self: ProcessSession, metrics: dict[str, float], folder: str | None) -> None:
        report(self, metrics, folder)
        kept.append(metrics["step"])
        if len(kept) == 3:
            raise KeyboardInterrupt

    alone = config.model_copy(update={"workers": config.workers.model_copy(update={"count": 0})})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessSession, "report", report_three)
        with pytest.raises(KeyboardInterrupt):
            train(alone)
    went_on = re.search(r"resuming from step (\d+) with 1 worker\n", capsys.readouterr().err)
    assert went_on is not None
    assert int(went_on[1]) >= newest  # an upload in progress may have finished
    newest = int(went_on[1]) + 3
    assert kept == [newest - 2, newest - 1, newest]

    observer = observe(tmp_path / "second")
    one = config.model_copy(update={"workers": config.workers.model_copy(update={"count": 1})})
    trained, second = train(one, observer.callback()), observer.reports()
    went_on = re.search(r"resuming from step (\d+) with 1 worker\n", capsys.readouterr().err)
    assert went_on is not None
    begun = int(went_on[1])
    assert begun == newest
    steps = [report["step"] for report in second if report["step"] > begun]  # that one may be reported to Ray again
    assert steps == list(range(begun + 1, EPOCHS_TO_STOP * STEPS + 1))
    assert {report["workers"] for report in second} == {1}
    assert second[-1]["tiles"] == TILES
    again = only_run(client, config.name)
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert trained.tracking_run == run.info.run_id


@pytest.fixture
def damaged(s3: S3Server, tile_set: Callable[..., Manifest], ray_local: Any, tmp_path: Path) -> Manifest:
    """A separate tile set, to be damaged."""
    return tile_set(f"s3://{s3.bucket}/ray-local/damaged/{tmp_path.name}")


def test_a_span_of_workers_takes_as_many_as_it_may_and_leaves_a_corrupt_tile_out(
    damaged: Manifest,
    pretraining: Make,
    spoil_tile: Callable[..., str],
    observe: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = int(damaged.rows_of("train")[5])
    tile, shard = spoil_tile(damaged, row), damaged.tile(row)["shard"]
    changes = {"data.max_corrupt": 1, "workers.count": {"min": 1, "max": 2}}
    observer = observe(tmp_path / "reports")
    trained = train(pretraining("corrupt-left-out", damaged.uri, changes), observer.callback())
    assert trained.metrics["tiles"] == TILES
    seen = [(report["epochs"], report["tiles"], report["workers"]) for report in observer.reports()]
    assert seen == [(1, TILES, 2), (2, TILES, 2)]
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2  # one in each epoch
    assert all(f"tile {tile} in shard {join(damaged.uri, shard)}" in line for line in warnings)


def test_a_truncated_shard_ends_the_run_and_its_job(
    damaged: Manifest,
    pretraining: Make,
    truncate_shard: Callable[..., str],
    client: MlflowClient,
    tmp_path: Path,
    refused_job: Callable[..., str],
) -> None:
    shard = truncate_shard(damaged, int(damaged.rows_of("train")[0]))
    config = pretraining("truncated", damaged.uri, {"max_failures": 0})
    said = refused_job("jobs/pretrain_student.py", "-c", write_config(tmp_path / "run.yaml", config))
    assert f"shard {shard} cannot be read" in said
    assert "truncated" in said
    assert only_run(client, "truncated").info.status == "FAILED"


def test_what_frees_the_resources_of_a_dead_run_ends_by_itself(ray_local: RayHead) -> None:
    """Whether the run's controller dies later, or before the cleaner's monitoring was requested."""

    class Controller:
        pass

    def clean_up_after(controller: Any) -> Any:
        options = {"check_interval_s": 0.1, "get_actor_timeout_s": 30, "stop_timeout": 1.0}
        cleaner = ray.remote(num_cpus=0)(EndingCleaner).options(lifetime="detached")
        return cleaner.remote(controller_actor_id=controller._actor_id.hex(), **options)

    dead, living = (ray.remote(num_cpus=0)(Controller).remote() for _ in range(2))
    ray.kill(dead)
    cleaners = [clean_up_after(dead), clean_up_after(living)]
    ray.get(cleaners[1].start_monitoring.remote())
    assert get_actor(cleaners[1]._actor_id.hex(), timeout=30).state == "ALIVE"
    ray.kill(living)
    until = time.monotonic() + 120
    for cleaner in cleaners:
        while (state := get_actor(cleaner._actor_id.hex(), timeout=30)) is None or state.state != "DEAD":
            assert time.monotonic() < until
            time.sleep(0.2)
