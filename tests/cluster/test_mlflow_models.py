"""A registered version as others open it: by MLflow's own loader and scoring server, with nothing unpickled."""

import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from histill.api.model import load_model
from histill.artifacts import model_folder
from histill.artifacts.formats.subject import Subject
from histill.artifacts.model_folder import ModelCard
from histill.config.common import Storage, Tracking
from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig
from histill.config.score_model import ScoreConfig
from histill.local.ports import LOOPBACK, free_ports
from histill.local.processes import run_server, wait_until_ready
from histill.local.s3 import S3Server
from histill.local.tracking import TrackingServer
from histill.registry import versions
from histill.registry.evidence import EXPORTS_FOLDER, SCORE_PATH
from histill.registry.materialize import materialize_model
from histill.registry.mlflow_runs import open_run
from histill.registry.scoring import run_scoring
from histill.storage.control import json_bytes
from histill.storage.records import write_record
from histill.tiles.manifest import Manifest
from histill.train.run_folder import RunRecord
from histill.train.tracker import DataUse

pytestmark = pytest.mark.cluster

NAME, SIDE = "mlflow-models", 32
CARD = ModelCard(
    kind="classification", encoder="resnet_gn", decoder_channels=(), classes=("stroma", "tumour"), mean=(0.7, 0.5, 0.7),
    std=(0.2, 0.2, 0.2), tile_px=64, tile_mpp=0.5, size_px=SIDE, tiles_digest="cd" * 32,
    train_cases=("0123456789ab",), histill="0.1.0",
)  # fmt: skip
HELD_OUT = DataUse("s3://bucket/tiles/held-out", "ef" * 32, "evaluation")


@dataclass(frozen=True)
class Champion:
    """A champion whose training run is on the server, with tiles and the logits of its network."""

    uri: str
    training_run: str
    tiles: np.ndarray
    logits: np.ndarray

    def environment(self) -> dict[str, str]:
        """What a program needs that opens it: of histill, nothing."""
        known = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PYTHON", "AWS_"))}
        return known | {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        }


@pytest.fixture(scope="module")
def champion(s3: S3Server, tracking: TrackingServer, tmp_path_factory: pytest.TempPathFactory) -> Champion:
    """Registered from a run's folder in S3, with an ONNX file and a score."""
    where = Tracking(uri=tracking.uri, experiment=NAME)
    run, local = f"s3://{s3.bucket}/{NAME}/run", str(tmp_path_factory.mktemp("model"))
    torch.manual_seed(0)
    network = model_folder.build(CARD).eval()
    model_folder.save(local, network, CARD)
    tiles = np.random.default_rng(0).integers(0, 256, (5, 3, SIDE, SIDE), dtype=np.uint8)
    with torch.inference_mode():
        logits = network(torch.from_numpy(tiles).float()).numpy()
    evidence = {
        f"{EXPORTS_FOLDER}/model.onnx": Subject.copy_of(network, CARD).onnx,
        f"{EXPORTS_FOLDER}/interface.json": json_bytes({"license": "CC-BY-4.0"}),
        SCORE_PATH: json_bytes({"split": "test", "figures": {"accuracy": 0.75, "auroc": float("nan")}}),
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in s3.environment().items():
            patch.setenv(key, value)
        config = PretrainConfig.model_validate(
            {"name": "run", "runs": "/runs", "data": {"tiles": "/tiles"}, "teacher": {"classical": True}}
        )
        trained = open_run(where, name="run", kind="pretrain", config=config, run_id=None)
        assert trained is not None
        trained.finish("FINISHED")
        record = RunRecord(kind="pretrain", config={}, tracking_run=trained.run_id)
        write_record(record, f"{run}/run.json", Storage())
        model_folder.copy(local, f"{run}/model", Storage())
        version = versions.register(f"{run}/model", NAME, evidence, where, Storage(), scored_on=HELD_OUT)
    MlflowClient(tracking.uri, tracking.uri).set_registered_model_alias(NAME, versions.CHAMPION, version)
    return Champion(tracking.uri, trained.run_id, tiles, logits)


def test_a_version_is_a_logged_model_of_its_training_run_with_figures_by_dataset(
    champion: Champion, client: MlflowClient
) -> None:
    version = client.get_model_version_by_alias(NAME, "champion")
    model = client.get_logged_model(version.tags["logged_model"])
    assert (model.source_run_id, model.status, model.model_type) == (champion.training_run, "READY", "classification")
    assert model.params["license"] == "CC-BY-4.0"
    assert json.loads(model.params["classes"]) == ["stroma", "tumour"]
    trained, judged = client.get_run(champion.training_run), client.get_run(version.run_id)
    assert [each.model_id for each in trained.outputs.model_outputs] == [model.model_id]
    assert [each.model_id for each in judged.inputs.model_inputs] == [model.model_id]
    (used,) = judged.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("held-out", HELD_OUT.digest[:36])
    (figure,) = (each for each in model.metrics if each.dataset_digest == HELD_OUT.digest[:36])
    assert (figure.key, figure.value) == ("test/accuracy", 0.75)  # nan is none


def test_an_engine_runs_the_file_of_the_version(
    champion: Champion, config: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched with the model, for prediction on nodes that do not know the registry, and in a notebook."""

    def refuse(self: Subject) -> bytes:
        raise AssertionError("it is exported again")

    monkeypatch.setattr(Subject, "onnx", property(refuse))
    uri = f"models:/{NAME}@champion"
    there = materialize_model(uri, config, str(tmp_path), Storage(), name="model")
    assert sorted(path.name for path in Path(there).iterdir()) == ["model.json", "model.onnx", "model.safetensors"]
    model = load_model(uri, engine="onnxruntime", tracking=config)
    expected = torch.from_numpy(champion.logits).softmax(1)
    torch.testing.assert_close(model.predict(champion.tiles), expected, rtol=1e-4, atol=1e-4)


def test_a_score_of_a_version_is_a_figure_of_its_logged_model(
    champion: Champion, client: MlflowClient, config: Tracking, tile_set: Callable[..., Manifest], tmp_path: Path
) -> None:
    tiles = tile_set(tmp_path, labels=True)
    keys = {"model": f"models:/{NAME}@champion", "held_out": {"tiles": tiles.uri, "split": "train"}, "speed": False}
    score = run_scoring(
        validate(ScoreConfig, keys | {"tracking": config.model_dump(), "robustness_tiles": 0}, "the test")
    )
    version = client.get_model_version_by_alias(NAME, "champion")
    figures = client.get_logged_model(version.tags["logged_model"]).metrics
    digest = tiles.header.digest[:36]
    found = {each.key: each.value for each in figures if each.dataset_digest == digest}
    assert found["train/balanced_accuracy"] == score.figures["balanced_accuracy"]
    (run,) = client.search_runs([client.get_experiment_by_name(config.experiment).experiment_id])
    assert run.data.metrics["train/balanced_accuracy"] == score.figures["balanced_accuracy"]


LOAD = """
import json, sys
import numpy as np
import mlflow.pyfunc

model = mlflow.pyfunc.load_model("models:/mlflow-models@champion")
answers = model.predict(np.load(sys.argv[1]))
loaded = [name for name in ("torch", "ray", "histill", "onnx") if name in sys.modules]
import mlflow.onnx

graph = mlflow.onnx.load_model("models:/mlflow-models@champion")
print(json.dumps([answers.to_dict("list"), loaded, graph.graph.input[0].name]))
"""


def test_pyfunc_with_pickle_off_answers_without_ray_and_without_torch(champion: Champion, tmp_path: Path) -> None:
    np.save(tmp_path / "tiles.npy", champion.tiles)
    command = [sys.executable, "-c", LOAD, str(tmp_path / "tiles.npy")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=champion.environment(), cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers, loaded, asked = json.loads(done.stdout)
    assert (list(answers), loaded, asked) == (["stroma", "tumour"], [], "pixels")
    np.testing.assert_allclose(np.array(list(answers.values())).T, champion.logits, atol=1e-4)


def test_mlflow_serves_a_champion_with_pickle_off(champion: Champion, tmp_path: Path) -> None:
    """A minute at most on a loaded machine: MLflow's command imports itself three times before it answers."""
    (port,) = free_ports(1)
    command = [*(sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local")]
    command += ["--model-uri", f"models:/{NAME}@champion", "--host", LOOPBACK, "--port", str(port)]

    def post(body: bytes, kind: str) -> pd.DataFrame:
        request = urllib.request.Request(f"http://{LOOPBACK}:{port}/invocations", body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return pd.DataFrame(json.loads(answer.read())["predictions"])

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/ping", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    env = champion.environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with run_server(command, log=tmp_path / "serve.log", env=env, cwd=tmp_path) as process:
        wait_until_ready(process, "The scoring server", tmp_path / "serve.log", answers, 120)
        one = post(json.dumps({"inputs": champion.tiles[:1].tolist()}).encode(), "application/json")
        table = io.BytesIO()
        pd.DataFrame({"tiles": list(champion.tiles.reshape(len(champion.tiles), -1))}).to_parquet(table)
        several = post(table.getvalue(), "application/vnd.apache.parquet")
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(json.dumps({"inputs": champion.tiles[:1, :, :8].tolist()}).encode(), "application/json")
    assert list(one.columns) == list(several.columns) == ["stroma", "tumour"]
    np.testing.assert_allclose(one, champion.logits[:1], atol=1e-4)
    np.testing.assert_allclose(several, champion.logits, atol=1e-4)
