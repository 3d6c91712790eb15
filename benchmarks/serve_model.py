"""MLflow's scoring server on a registered version, compared with the engine that it runs.

    python -m benchmarks.serve_model [--size-px 112] [--tiles 32] [--rounds 9]

A CSAT classifier with random weights is registered with its ONNX file on an MLflow server of this machine, and
`mlflow models serve` starts on the version. A request brings the same tiles as Parquet or as JSON. The engine is ONNX
Runtime with as many threads, called in this process on the same tiles, 8 at a time and all at once, of which the faster
counts. It takes turns with requests as Parquet, and then with requests as JSON, whose garbage would slow the server's
next answer; logits are compared each time. The start is the time from the command to the first
answer, and the CPU seconds that its processes used until then. Prints a JSON line for each way and as its last line the
ratios of the medians: {"parquet_over_engine": r, "json_over_engine": r, "start_s": s, "start_cpu_s": s}.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import torch

from benchmarks.loaders.cpu import tree_cpu_s
from histill.artifacts import model_folder
from histill.artifacts.formats.subject import Subject
from histill.artifacts.model_folder import ModelCard
from histill.config.common import Storage, Tracking
from histill.local.ports import LOOPBACK, free_ports
from histill.local.processes import run_server, wait_until_ready
from histill.local.tracking import mlflow_server
from histill.registry.evidence import EXPORTS_FOLDER
from histill.registry.versions import register

NAME, BATCH, WITHIN = "served", 8, 1e-4
CARD = ModelCard(
    kind="classification", encoder="csat", decoder_channels=(), classes=("stroma", "tumour"), mean=(0.7, 0.5, 0.7),
    std=(0.2, 0.2, 0.2), tile_px=512, tile_mpp=0.25, size_px=112, tiles_digest="", train_cases=(), histill="0",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-px", type=int, default=112, help="side at which the network sees a tile")
    parser.add_argument("--tiles", type=int, default=32, help="in a request")
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    side = chosen.size_px
    tiles = np.random.default_rng(0).integers(0, 256, (chosen.tiles, 3, side, side), dtype=np.uint8)
    with tempfile.TemporaryDirectory(prefix="serve-model-") as name, mlflow_server(Path(name, "mlflow")) as tracking:
        onnx = publish(Path(name, "model"), CARD.model_copy(update={"size_px": side}), tracking.uri)
        session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        with serve(Path(name), tracking.uri) as (address, start):
            engine: dict[str, Callable[[], np.ndarray]] = {
                "engine, 8 at a time": partial(answer, session, tiles, BATCH),
                "engine, all at once": partial(answer, session, tiles, len(tiles)),
            }
            requests = {"parquet": as_parquet(tiles), "json": as_json(tiles)}
            ratios = {
                f"{name}_over_engine": compare_served(engine, name, partial(post, address, *request), chosen.rounds)
                for name, request in requests.items()
            }
    print(json.dumps({name: round(value, 2) for name, value in (ratios | start).items()}))


def publish(folder: Path, card: ModelCard, uri: str) -> bytes:
    """Register an untrained model on the server at `uri`; returns its ONNX file."""
    folder.mkdir()
    network = model_folder.build(card).eval()
    model_folder.save(str(folder), network, card)
    onnx = Subject.copy_of(network, card).onnx
    register(str(folder), NAME, {f"{EXPORTS_FOLDER}/model.onnx": onnx}, Tracking(uri=uri), Storage())
    return onnx


@contextmanager
def serve(folder: Path, uri: str) -> Iterator[tuple[str, dict[str, float]]]:
    """The version on MLflow's scoring server: its address, and what it took until it answered."""
    (port,) = free_ports(1)
    address, log = f"http://{LOOPBACK}:{port}", folder / "serve.log"
    command = [*(sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local")]
    command += ["--model-uri", f"models:/{NAME}/1", "--host", LOOPBACK, "--port", str(port)]
    env = os.environ | {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow starts `uvicorn`
    }

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    began = time.perf_counter()
    with run_server(command, log=log, env=env, cwd=folder) as process:
        wait_until_ready(process, "The scoring server", log, answers, 120)
        took = {"start_s": time.perf_counter() - began, "start_cpu_s": tree_cpu_s(process.pid)}
        yield f"{address}/invocations", took


def answer(session: onnxruntime.InferenceSession, tiles: np.ndarray, batch: int) -> np.ndarray:
    """The engine's logits."""
    parts = (tiles[at : at + batch].astype(np.float32) for at in range(0, len(tiles), batch))
    return np.concatenate([session.run(None, {"pixels": part})[0] for part in parts])


def as_parquet(tiles: np.ndarray) -> tuple[bytes, str]:
    """A request's body and its type."""
    body = io.BytesIO()
    pd.DataFrame({"tiles": list(tiles.reshape(len(tiles), -1))}).to_parquet(body)
    return body.getvalue(), "application/vnd.apache.parquet"


def as_json(tiles: np.ndarray) -> tuple[bytes, str]:
    """The same as JSON."""
    return json.dumps({"inputs": tiles.tolist()}).encode(), "application/json"


def post(address: str, body: bytes, kind: str) -> np.ndarray:
    """The server's logits."""
    with urllib.request.urlopen(urllib.request.Request(address, body, {"Content-Type": kind}), timeout=300) as reply:
        rows = json.loads(reply.read())["predictions"]
    return np.array([[row[name] for name in CARD.classes] for row in rows])


def compare_served(
    engine: dict[str, Callable[[], np.ndarray]], name: str, served: Callable[[], np.ndarray], rounds: int
) -> float:
    """How many times as fast as the engine the server answers."""
    seconds = compare(engine | {name: served}, rounds)
    return min(seconds[way] for way in engine) / seconds[name]


def compare(ways: dict[str, Callable[[], np.ndarray]], rounds: int) -> dict[str, float]:
    """The median seconds of each way, after a round that warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    expected = next(iter(ways.values()))()
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            np.testing.assert_allclose(way(), expected, atol=WITHIN)
            if number:
                found[name].append(time.perf_counter() - began)
    for name, each in found.items():
        print(json.dumps({"way": name, "ms": [round(1000 * value, 1) for value in each]}), flush=True)
    return {name: statistics.median(each) for name, each in found.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
