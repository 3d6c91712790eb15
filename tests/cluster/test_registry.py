"""Runs, versions and promotion against a real MLflow server; only the evaluation is prepared."""

import base64
import hmac
import json
import logging
import pickle
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import mlflow.artifacts
import pytest
from mlflow import MlflowClient

from histill.artifacts import model_folder
from histill.artifacts.checksums import CHECKSUMS_NAME, list_checksums
from histill.artifacts.model_folder import ONNX_NAME, ModelCard
from histill.artifacts.signature import SIGNATURE_NAME
from histill.config.common import Storage, Tracking
from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig
from histill.config.runs import RunConfig
from histill.config.sync_metrics import SyncConfig
from histill.config.train_teacher import TeacherConfig
from histill.errors import InputError
from histill.local.ports import LOOPBACK, free_ports
from histill.local.tracking import mlflow_server
from histill.registry import mlflow_client, versions
from histill.registry.champions import append_champion, read_history
from histill.registry.dead_runs import OWNER_TAG, owner
from histill.registry.fetch import download_version, fetch_model, read_evidence
from histill.registry.materialize import materialize_model
from histill.registry.metric_spool import MetricSpool, sync_metrics
from histill.registry.mlflow_runs import open_run
from histill.registry.mlflow_tracker import FLUSH_VALUES, MlflowTracker
from histill.search.configs import PretrainSearch
from histill.storage.control import json_bytes
from histill.train.tracker import DataUse

pytestmark = pytest.mark.cluster

TRAIN_DIGEST = "cd" * 32
STORAGE = Storage()
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-secret-of-s3",
    "MLFLOW_TRACKING_PASSWORD": "planted-password-of-mlflow",
}


@pytest.fixture(autouse=True)
def planted_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "someone")


@pytest.fixture
def nobody() -> Tracking:
    """Where no server listens."""
    return Tracking(uri=f"http://{LOOPBACK}:{free_ports(1)[0]}")


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """Writes a model folder whose weights depend on the number; the same number gives the same digest."""
    import torch

    card = ModelCard(
        encoder="csat_tiny",
        decoder_channels=(16, 8, 8, 8, 8),
        classes=("background", "nucleus"),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        tile_px=64,
        tile_mpp=0.5,
        size_px=64,
        tiles_digest=TRAIN_DIGEST,
        train_cases=(),
        histill="0.1.0",
    )
    made: dict[int, str] = {}

    def make(number: int) -> str:
        if number not in made:
            torch.manual_seed(number)
            made[number] = str(tmp_path_factory.mktemp("model"))
            model_folder.save(made[number], model_folder.build(card), card)
        return made[number]

    return make


def training(**changes: Any) -> PretrainConfig:
    data = {
        "name": "student",
        "runs": "/runs",
        "data": {"tiles": "/tiles"},
        "teacher": {"classical": True},
        **changes,
    }
    return validate(PretrainConfig, data, "the test")


def begin(config: Tracking, run_id: str | None = None, **changes: Any) -> MlflowTracker:
    tracker = open_run(config, name="student", kind="pretrain", config=training(**changes), run_id=run_id)
    assert tracker is not None
    return tracker


def runs_of(client: MlflowClient, config: Tracking) -> list[Any]:
    experiment = client.get_experiment_by_name(config.experiment)
    return list(client.search_runs([experiment.experiment_id]))


def test_a_run_taken_up_again_is_one_run(config: Tracking, client: MlflowClient) -> None:
    first = begin(config)
    first.finish("FAILED")
    assert client.get_run(first.run_id).info.status == "FAILED"
    second = begin(config, first.run_id, workers={"count": 4})
    assert second == first
    (run,) = runs_of(client, config)
    assert run.info.status == "RUNNING"
    assert run.data.params["workers.count"] == "2"
    assert run.data.tags["resumed.workers.count"] == "4"
    assert run.data.tags["kind"] == "pretrain"
    assert {"histill", "python", "torch", "ray"} <= set(run.data.tags)
    second.finish("FINISHED")
    assert client.get_run(first.run_id).info.status == "FINISHED"


def test_a_part_names_its_parent(config: Tracking, client: MlflowClient) -> None:
    whole = begin(config)
    part = open_run(
        config,
        name="t1",
        kind="trial",
        config=training(),
        run_id=None,
        parent=whole.run_id,
        tags={"trial": "1"},
    )
    assert part is not None
    tags = client.get_run(part.run_id).data.tags
    assert tags["mlflow.parentRunId"] == whole.run_id
    assert tags["trial"] == "1"
    of_whole = client.get_run(whole.run_id).data.tags
    origin = [name for name in of_whole if name.startswith(("mlflow.source.", "mlflow.user"))]
    assert {"mlflow.source.name", "mlflow.user"} <= set(origin)
    assert {name: tags[name] for name in origin} == {name: of_whole[name] for name in origin}


def test_a_run_says_where_it_comes_from_and_what_it_reads(
    config: Tracking, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/histill", "train", "name=a b", "s3://key:PLANTED@bucket/x"])
    data = [DataUse("s3://bucket/tiles/liver/", "ab" * 32, "training")]
    tracker = open_run(
        config, name="student", kind="pretrain", config=training(), run_id=None, note="- A *run*.", data=data
    )
    assert tracker is not None
    tracker.data(data)  # once more, as after a restart
    run = client.get_run(tracker.run_id)
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("- A *run*.\n- command: `histill train 'name=a b' s3://")
    assert "PLANTED" not in note
    assert run.data.tags["mlflow.source.name"] == "histill"
    assert (
        run.data.tags["mlflow.source.git.commit"]
        == subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.dataset.source_type) == ("liver", ("ab" * 32)[:36], "s3")
    assert json.loads(used.dataset.source) == {"uri": "s3://bucket/tiles/liver/"}
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]


def test_a_run_that_the_server_lost_is_replaced(
    config: Tracking, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = begin(config, "0" * 32)
    assert tracker.run_id != "0" * 32
    assert [record.levelno for record in caplog.records if record.levelname == "WARNING"] == [logging.WARNING]
    assert client.get_run(tracker.run_id).data.params["data.tiles"] == "/tiles"


def test_two_jobs_make_one_experiment(config: Tracking, client: MlflowClient) -> None:
    trackers: list[MlflowTracker] = []
    threads = [threading.Thread(target=lambda: trackers.append(begin(config))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {run.info.run_id for run in runs_of(client, config)} == {tracker.run_id for tracker in trackers}
    assert len(trackers) == 3


def test_long_values_are_cut_and_addresses_lose_their_userinfo(config: Tracking, client: MlflowClient) -> None:
    names = ["background", *(f"a class with a long name {number}" for number in range(40))]
    space = {"teacher.model": {"choice": ("http://user:planted-password-of-mlflow@host/model",)}}
    shared = RunConfig.model_fields.keys()
    teacher = TeacherConfig.model_validate(training().model_dump(include=set(shared)) | {"classes": tuple(names)})
    search = PretrainSearch.model_validate(training().model_dump() | {"space": space})  # `validate` would refuse it
    for job in (teacher, search):
        tracker = open_run(config, name="n", kind="k", config=job, run_id=None)
        assert tracker is not None
        params = client.get_run(tracker.run_id).data.params
        assert max(map(len, params.values())) <= 500
        assert not [value for value in params.values() if "planted" in value]


def test_metrics_and_pictures_arrive(config: Tracking, client: MlflowClient, tmp_path: Path) -> None:
    tracker: MlflowTracker = pickle.loads(pickle.dumps(begin(config)))  # noqa: S301 - our own bytes
    steps = FLUSH_VALUES // 2 + 10  # two values a step: one batch is sent on the way, the rest by close
    for step in range(steps):
        tracker.metrics({"train/loss": 1.0 / (step + 1), "val/dice": float("nan") if step == 3 else 0.5}, step)
    tracker.picture("rows", b"\x89PNG")
    tracker.close()
    history = client.get_metric_history(tracker.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in sorted(history, key=lambda metric: metric.step)] == [
        (step, 1.0 / (step + 1)) for step in range(steps)
    ]
    assert len(client.get_metric_history(tracker.run_id, "val/dice")) == steps
    local = client.download_artifacts(tracker.run_id, "pictures/rows.png", str(tmp_path))
    assert Path(local).read_bytes() == b"\x89PNG"


def test_a_table_that_is_recorded_again_holds_its_rows_once(
    config: Tracking, client: MlflowClient, tmp_path: Path
) -> None:
    rows = [{"trial": "a", "dice": 0.5}, {"trial": "b", "dice": float("nan")}]
    tracker = begin(config)
    tracker.table("trials", rows)
    begin(config, tracker.run_id).table("trials", rows)
    path = client.download_artifacts(tracker.run_id, "trials.json", str(tmp_path))
    assert json.loads(Path(path).read_text()) == {"columns": ["trial", "dice"], "data": [["a", 0.5], ["b", None]]}
    shown = client.get_run(tracker.run_id).data.tags["mlflow.loggedArtifacts"]
    assert json.loads(shown) == [{"path": "trials.json", "type": "table"}]


def test_steps_that_a_resumed_run_repeats_stand_as_they_were(config: Tracking, client: MlflowClient) -> None:
    tracker = begin(config)
    for step in range(1, 4):
        tracker.metrics({"train/loss": 1.0, "val/dice": 0.5}, step)
    tracker.close()
    again = begin(config, tracker.run_id)
    for step in range(2, 6):
        again.metrics({"train/loss": 2.0}, step)
    again.metrics({"val/dice": 0.6, "val/miou": 0.4}, 3)
    again.close()
    found = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(tracker.run_id, name)]
        for name in ("train/loss", "val/dice", "val/miou")
    }
    assert found == {
        "train/loss": [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0)],
        "val/dice": [(1, 0.5), (2, 0.5), (3, 0.5)],
        "val/miou": [(3, 0.4)],
    }


def test_metrics_that_were_held_back_arrive_below_the_newest_step(
    config: Tracking, client: MlflowClient, tmp_path: Path
) -> None:
    """Steps 3 and 4 were refused and kept; the run went on, and its next process has sent 5 and 6 meanwhile."""
    tracker = begin(config)
    for step in (1, 2, 5, 6):
        tracker.metrics({"train/loss": 1.0}, step)
    tracker.finish("FINISHED")
    kept = MetricSpool(str(tmp_path), STORAGE)
    values = [("train/loss", 3.0, 1_000_000 + step, step) for step in (2, 3, 4)]
    kept.keep(tracker.uri, tracker.run_id, [*values, ("val/dice", 0.5, 1_000_000, 4)], None)
    assert sync_metrics(SyncConfig(unsent=str(tmp_path))).metrics == 3
    history = client.get_metric_history(tracker.run_id, "train/loss")
    found = sorted((metric.step, metric.value) for metric in history)
    assert found == [(1, 1.0), (2, 1.0), (3, 3.0), (4, 3.0), (5, 1.0), (6, 1.0)]
    again = begin(config, tracker.run_id)
    again.metrics({"train/loss": 9.0}, 4)  # a resumed run repeats its steps
    again.close()
    assert len(client.get_metric_history(tracker.run_id, "train/loss")) == 6


def test_runs_of_killed_processes_are_closed_by_the_next_of_their_name(
    config: Tracking, client: MlflowClient, make_model: Callable[[int], str], name: str
) -> None:
    dead, alive, other = begin(config), begin(config), begin(config)
    host, number, began = owner().rsplit(" ", 2)
    client.set_tag(dead.run_id, OWNER_TAG, f"{host} {number} {int(began) + 1}")  # its number was given away since
    client.set_tag(other.run_id, OWNER_TAG, f"elsewhere {host} {number} 1")
    begin(config)
    status = [client.get_run(each.run_id).info.status for each in (dead, alive, other)]
    assert status == ["KILLED", "RUNNING", "RUNNING"]
    version = versions.register(make_model(5), name, {}, config, STORAGE)
    run_id = client.get_model_version(name, version).run_id
    client.update_run(run_id, status="RUNNING")  # as after a kill between the version and the end of its run
    assert versions.register(make_model(5), name, {}, config, STORAGE) == version
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_pickled_tracker_holds_neither_values_nor_clients(config: Tracking) -> None:
    tracker = begin(config)
    empty = pickle.dumps(tracker)
    tracker.metrics({"loss": 1.0}, 0)
    tracker.close()
    tracker.metrics({"loss": 1.0}, 1)
    assert pickle.dumps(tracker) == empty


def test_a_server_that_is_gone_costs_one_warning(nobody: Tracking, caplog: pytest.LogCaptureFixture) -> None:
    assert nobody.uri is not None
    tracker = MlflowTracker(nobody.uri, "0" * 32)
    for step in range(FLUSH_VALUES + 1):
        tracker.metrics({"loss": 1.0}, step)
    tracker.close()
    tracker.metrics({"loss": 1.0}, 0)
    tracker.finish("FINISHED")
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1, said
    assert nobody.uri in said[0]


def test_a_run_that_is_refused_costs_one_warning(config: Tracking, caplog: pytest.LogCaptureFixture) -> None:
    assert config.uri is not None
    tracker = MlflowTracker(config.uri, "0" * 32)
    tracker.metrics({"loss": 1.0}, 0)
    tracker.params({"a": "b"})
    tracker.close()
    assert len(caplog.records) == 1


@pytest.fixture
def silent() -> Iterator[Tracking]:
    """A server that takes connections and never answers."""
    with socket.create_server((LOOPBACK, 0)) as listening:
        yield Tracking(uri=f"http://{LOOPBACK}:{listening.getsockname()[1]}")


def test_a_server_that_never_answers_is_not_waited_for(
    silent: Tracking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert silent.uri is not None
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    tracker = MlflowTracker(silent.uri, "0" * 32)
    for step in range(2 * FLUSH_VALUES):
        tracker.metrics({"loss": 1.0}, step)
    assert not caplog.records  # the first batch is still waiting for its answer, and the loop is through
    tracker.close()
    assert len(caplog.records) == 1
    assert "cannot be reached" in caplog.text


def test_a_job_does_not_begin_with_a_server_that_never_answers(
    silent: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_client, "_ANSWER_WITHIN_S", 0.2)
    with pytest.raises(InputError, match="cannot be reached"):
        begin(silent)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (None, "cannot be reached"),
        ("sqlite:///runs.db", "http"),
        ("http://user:secret@host", "MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_sentence(
    uri: str | None, said: str, nobody: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri or nobody.uri or "")
    with pytest.raises(InputError, match=said) as raised:
        open_run(Tracking(), name="n", kind="k", config=training(), run_id=None)
    assert "secret" not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert uri is not None or str(nobody.uri) in str(raised.value)


def history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in MlflowClient(uri, uri).get_metric_history(run_id, name)]


def test_what_a_server_was_not_there_to_take_arrives_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder, unsent, (port,) = tmp_path / "mlflow", str(tmp_path / "unsent"), free_ports(1)
    with mlflow_server(folder, port) as started:
        where = Tracking(uri=started.uri, experiment="away")

        def begun(run_id: str | None = None) -> MlflowTracker:
            tracker = open_run(where, name="n", kind="k", config=training(), run_id=run_id, unsent=unsent)
            assert tracker is not None
            return tracker

        tracker = begun()
        tracker.metrics({"loss": 1.0}, 0)
        tracker.close()
    for step in range(1, 4):
        tracker.metrics({"loss": 1.0, "val/dice": float("nan")}, step)
    deadline = time.monotonic() + 60
    while not caplog.records and time.monotonic() < deadline:
        tracker.flush()  # which does not wait
        time.sleep(0.05)
    assert len(caplog.records) == 1
    assert f"wait for it (in the end below {unsent})" in caplog.text
    with mlflow_server(folder, port):
        tracker.metrics({"loss": 2.0}, 4)
        tracker.close()
        assert "the tracking server http" in caplog.text
        assert "answers again" in caplog.text
        assert history(started.uri, tracker.run_id, "loss") == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
        assert [step for step, _ in history(started.uri, tracker.run_id, "val/dice")] == [1, 2, 3]
    tracker.metrics({"loss": 3.0, "val/dice": float("nan")}, 5)
    tracker.finish("FINISHED")  # the server is still away
    assert len(list(Path(unsent).iterdir())) == 2  # metrics, and the status
    with pytest.raises(InputError, match=f"the tracking server {started.uri} cannot be reached"):
        sync_metrics(SyncConfig(unsent=unsent))
    with mlflow_server(folder, port):
        caplog.clear()
        begun()  # the next run brings them along
        assert "2 metrics of earlier runs were sent" in caplog.text
        assert history(started.uri, tracker.run_id, "loss")[-2:] == [(4, 2.0), (5, 3.0)]
        assert MlflowClient(started.uri).get_run(tracker.run_id).info.status == "FINISHED"
        assert vars(sync_metrics(SyncConfig(unsent=unsent))) == {"metrics": 0, "runs": 0}


def test_a_server_that_asks_for_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make_model: Callable[[int], str]
) -> None:
    with mlflow_server(tmp_path / "mlflow", admin_password=SECRETS["MLFLOW_TRACKING_PASSWORD"]) as guarded:
        where = Tracking(uri=guarded.uri, experiment="guarded")
        with pytest.raises(InputError, match="refused the credentials; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKI"):
            begin(where)  # as someone whom it does not know
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        tracker = begin(where)
        tracker.metrics({"loss": 1.0}, 1)
        tracker.finish("FINISHED")
        assert history(guarded.uri, tracker.run_id, "loss") == [(1, 1.0)]
        assert versions.register(make_model(1), name, {}, where, STORAGE) == "1"
        fetched = fetch_model(f"models:/{name}/1", where, tmp_path)
        assert model_folder.load(fetched, STORAGE)[2] == model_folder.load(make_model(1), STORAGE)[2]
        request = urllib.request.Request(f"{guarded.uri}/api/2.0/mlflow/experiments/get", headers={"Host": "elsewhere"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request)  # a page of another host that has the browser ask


def test_no_server_is_no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert open_run(Tracking(), name="n", kind="k", config=training(), run_id=None) is None
    with pytest.raises(InputError, match=r"tracking\.uri"):
        versions.find_champion("n", Tracking())


def test_a_model_is_registered_once(
    config: Tracking, client: MlflowClient, name: str, make_model: Callable[[int], str], tmp_path: Path
) -> None:
    model = make_model(1)
    score = {"dice": 0.5, "miou": float("nan")}
    evidence = {"score.json": json_bytes(score), "pictures/comparison.png": b"\x89PNG"}
    assert versions.register(model, name, evidence, config, STORAGE, model_folder.load(model, STORAGE)[2]) == "1"
    run_id = client.get_model_version(name, "1").run_id
    client.update_run(run_id, status="RUNNING")  # as if the job had been killed once the version was there
    assert versions.register(model, name, {"search.json": b"{}"}, config, STORAGE) == "1"
    assert client.get_run(run_id).info.status == "FINISHED"
    assert versions.register(make_model(2), name, {}, config, STORAGE) == "2"
    version = client.get_model_version(name, "1")
    logged = client.get_logged_model(version.tags["logged_model"])
    assert (logged.source_run_id, logged.status) == (run_id, "READY")  # no training run is on record
    assert version.tags == {
        "logged_model": logged.model_id,
        "model_digest": model_folder.load(model, STORAGE)[2],
        "tiles_digest": TRAIN_DIGEST,
        "teacher_digest": "none",
        "histill": "0.1.0",
        "taught_by.licenses": "none",
        "taught_by.commercial_use": "allowed",
    }
    assert version.description == f"`csat_tiny` for tiles of 64 px at 0.5 um/px, registered from `{model}`."
    saved = client.download_artifacts(version.run_id, "", str(tmp_path))
    files = {str(path.relative_to(saved)) for path in Path(saved).rglob("*") if path.is_file()}
    assert files == {"score.json", "search.json", "pictures/comparison.png"}
    assert json.loads(Path(saved, "score.json").read_text())["miou"] is None
    assert len(runs_of(client, config)) == 2


def test_a_registered_model_comes_back_as_it_was(
    config: Tracking, client: MlflowClient, name: str, make_model: Callable[[int], str], tmp_path: Path
) -> None:
    model = make_model(1)
    version = versions.register(model, name, {}, config, STORAGE)
    client.set_registered_model_alias(name, versions.CHAMPION, version)
    assert versions.find_champion(name, config) == version
    for number, uri in enumerate((f"models:/{name}@champion", f"models:/{name}/1")):
        into = tmp_path / str(number)
        into.mkdir()
        local = fetch_model(uri, config, into)
        assert model_folder.load(local, STORAGE)[2] == model_folder.load(model, STORAGE)[2]
    assert fetch_model(model, config, tmp_path) == model
    for uri in (f"models:/{name}@nobody", f"models:/{name}/7", f"models:/un{name}/1", f"models:/{name}"):
        with pytest.raises(InputError, match="version"):
            fetch_model(uri, config, tmp_path)


def test_files_changed_on_the_server_are_refused(
    config: Tracking, client: MlflowClient, name: str, make_model: Callable[[int], str], tmp_path: Path
) -> None:
    version = versions.register(make_model(1), name, {}, config, STORAGE)
    model_id = client.get_model_version(name, version).tags["logged_model"]
    client.log_model_artifact(model_id, str(Path(make_model(2), model_folder.WEIGHTS_NAME)))
    with pytest.raises(InputError, match="not those that were registered"):
        download_version(name, version, tmp_path, config)


@pytest.fixture
def exports(make_model: Callable[[int], str]) -> Callable[..., dict[str, bytes]]:
    """`exports(files)`: these as exported files of model 1, with their checksums and its own."""
    model = Path(make_model(1))
    own = {name: (model / name).read_bytes() for name in (model_folder.WEIGHTS_NAME, model_folder.CARD_NAME)}

    def make(files: dict[str, bytes]) -> dict[str, bytes]:
        listed = {**files, CHECKSUMS_NAME: list_checksums({**files, **own})}
        return {f"exports/{name}": data for name, data in listed.items()}

    return make


def read_again(name: str, config: Tracking, folder: Path) -> dict[str, bytes]:
    """The evidence of version 1."""
    folder.mkdir()
    return read_evidence(name, "1", folder, config)


def test_a_version_that_is_registered_again_with_other_exports_keeps_its_own(
    config: Tracking, name: str, make_model: Callable[[int], str], exports: Callable[..., dict[str, bytes]],
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Its MLflow model holds an ONNX file, which the checksums must go on listing."""
    model, first, score = make_model(1), exports({ONNX_NAME: b"first"}), {"score.json": b"{}"}
    for other in ({ONNX_NAME: b"first"}, {ONNX_NAME: b"second"}, {"timm/config.json": b"{}"}):
        assert versions.register(model, name, exports(other) | score, config, STORAGE) == "1"
    assert [
        record.getMessage().partition(", which")[0] for record in caplog.records if record.levelname == "WARNING"
    ] == [f"version 1 of {name!r} keeps the files that it was registered with"] * 2
    there = materialize_model(f"models:/{name}/1", config, str(tmp_path / "there"), STORAGE, name="model")
    assert Path(there, ONNX_NAME).read_bytes() == b"first"
    assert read_again(name, config, tmp_path / "evidence") == first | score
    signed = first | {f"exports/{SIGNATURE_NAME}": b"a signature"}
    versions.register(model, name, signed, config, STORAGE)
    assert read_again(name, config, tmp_path / "signed") == signed | score


def test_a_version_without_exports_gets_those_of_its_promotion(
    config: Tracking, name: str, make_model: Callable[[int], str], exports: Callable[..., dict[str, bytes]],
    tmp_path: Path,
) -> None:  # fmt: skip
    """As the versions of sweeps do."""
    search, later = {"search.json": b"{}"}, exports({ONNX_NAME: b"later"})
    for evidence in (search, later):
        assert versions.register(make_model(1), name, evidence, config, STORAGE) == "1"
    there = materialize_model(f"models:/{name}/1", config, str(tmp_path / "there"), STORAGE, name="model")
    assert not Path(there, ONNX_NAME).exists()
    assert read_again(name, config, tmp_path / "evidence") == search | later


@pytest.mark.parametrize(("changed", "named"), [(ONNX_NAME, r"model\.onnx"), ("timm/added.json", r"timm/added\.json")])
def test_exports_changed_on_the_server_are_copied_nowhere(
    config: Tracking, client: MlflowClient, name: str, make_model: Callable[[int], str],
    exports: Callable[..., dict[str, bytes]], tmp_path: Path, changed: str, named: str,
) -> None:  # fmt: skip
    versions.register(make_model(1), name, exports({ONNX_NAME: b"a graph"}), config, STORAGE)
    path = tmp_path / changed
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"another")
    folder = Path("exports", changed).parent.as_posix()
    client.log_artifact(client.get_model_version(name, "1").run_id, str(path), folder)
    with pytest.raises(InputError, match=rf"^{named} of version 1 of '{name}' is not the file that was written"):
        read_again(name, config, tmp_path / "evidence")


def test_a_version_from_before_logged_models_is_read_and_kept(
    config: Tracking, client: MlflowClient, name: str, make_model: Callable[[int], str], tmp_path: Path
) -> None:
    model, digest = make_model(1), model_folder.load(make_model(1), STORAGE)[2]
    run = begin(config).run_id
    client.log_artifacts(run, model, "model")
    client.log_artifact(run, str(Path(model, model_folder.CARD_NAME)), "exports")
    client.create_registered_model(name)
    source = f"{client.get_run(run).info.artifact_uri}/model"
    client.create_model_version(name, source, run, tags={"model_digest": digest})
    local = fetch_model(f"models:/{name}/1", config, tmp_path)
    assert model_folder.load(local, STORAGE)[2] == digest
    (tmp_path / "evidence").mkdir()
    assert list(read_evidence(name, "1", tmp_path / "evidence", config)) == ["exports/model.json"]
    used = DataUse("/tiles", "ab" * 32, "evaluation")
    assert versions.register(model, name, {}, config, STORAGE, scored_on=used) == "1"


@pytest.fixture
def receiver() -> Iterator[tuple[str, Queue[tuple[Message, bytes]]]]:
    """An address, and the headers and bodies of what is posted to it."""
    received: Queue[tuple[Message, bytes]] = Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put((self.headers, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer((LOOPBACK, 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{LOOPBACK}:{server.server_port}/champions", received
        server.shutdown()


def test_a_webhook_hears_of_each_champion(
    config: Tracking,
    client: MlflowClient,
    name: str,
    make_model: Callable[[int], str],
    receiver: tuple[str, Queue[tuple[Message, bytes]]],
) -> None:
    """As docs/watch.md says: signed, for either alias, in any order."""
    url, received = receiver
    for seed in (1, 2):
        versions.register(make_model(seed), name, {}, config, STORAGE)
    secret = "a long random string"
    hook = client.create_webhook("champions", url, ["model_version_alias.created"], secret=secret)
    for version in ("1", "2"):
        append_champion(client, name, read_history(client, name), version)
    heard = set()
    for _ in range(3):
        headers, body = received.get(timeout=60)
        signed = f"{headers['X-MLflow-Delivery-Id']}.{headers['X-MLflow-Timestamp']}.".encode() + body
        digest = hmac.digest(secret.encode(), signed, "sha256")
        assert headers["X-MLflow-Signature"] == f"v1,{base64.b64encode(digest).decode()}"
        assert abs(time.time() - int(headers["X-MLflow-Timestamp"])) < 300
        message = json.loads(body)
        assert (message["entity"], message["action"]) == ("model_version_alias", "created")
        heard.add((message["data"]["name"], message["data"]["alias"], message["data"]["version"]))
    assert heard == {(name, "champion", "1"), (name, "previous", "1"), (name, "champion", "2")}
    assert client.test_webhook(hook.webhook_id).success
    client.delete_webhook(hook.webhook_id)


def test_a_pickle_is_not_registered(
    config: Tracking, client: MlflowClient, name: str, make_model: Callable[[int], str], tmp_path: Path
) -> None:
    model_folder.copy(make_model(1), str(tmp_path), STORAGE)
    (tmp_path / model_folder.WEIGHTS_NAME).write_bytes(pickle.dumps({"weights": [1.0]}))
    with pytest.raises(InputError, match="not a safetensors file"):
        versions.register(str(tmp_path), name, {}, config, STORAGE)
    assert not client.search_model_versions(f"name = '{name}'")


def test_the_model_registered_is_the_one_scored(config: Tracking, name: str, make_model: Callable[[int], str]) -> None:
    scored = model_folder.load(make_model(1), STORAGE)[2]
    with pytest.raises(InputError, match="changed while it was scored"):
        versions.register(make_model(2), name, {}, config, STORAGE, scored)


def test_no_secret_reaches_the_server(
    config: Tracking, client: MlflowClient, name: str, make_model: Callable[[int], str], tmp_path: Path
) -> None:
    tracker = begin(config)
    tracker.metrics({"loss": 1.0}, 0)
    tracker.finish("FINISHED")
    versions.register(make_model(1), name, {"score.json": b"{}"}, config, STORAGE)
    version = client.get_model_version(name, "1")
    kept = [version.tags, client.get_registered_model(name).tags]
    kept.append(client.get_logged_model(version.tags["logged_model"]).to_dictionary())
    mlflow.artifacts.download_artifacts(version.source, dst_path=str(tmp_path / "model"), tracking_uri=config.uri)
    for run in runs_of(client, config):
        kept.append(run.to_dictionary())
        folder = tmp_path / run.info.run_id
        folder.mkdir()
        client.download_artifacts(run.info.run_id, "", str(folder))
    texts = [repr(kept).encode(), *(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())]
    assert len(texts) == 1 + 10 + 1  # of the model, and the score
    for secret in SECRETS.values():
        assert not [text for text in texts if secret.encode() in text]
