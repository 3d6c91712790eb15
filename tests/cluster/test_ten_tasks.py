"""The ten tasks of docs/how-to/ten-tasks.md, as they stand there, one after another in one folder."""

import json
import re
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
from mlflow import MlflowClient

from histill.artifacts import model_folder
from histill.artifacts.model_folder import ModelCard
from histill.cli.main import main
from histill.config.common import Storage, Tracking
from histill.local.ray_head import RayHead
from histill.local.tracking import TrackingServer
from histill.registry.versions import register
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.cluster

PAGE = Path(__file__).parents[2] / "docs/how-to/ten-tasks.md"
CARD = ModelCard(
    encoder="csat_tiny", decoder_channels=(16, 8, 8, 8, 8), classes=("background", "nucleus"), mean=(0.5,) * 3,
    std=(0.2,) * 3, tile_px=64, tile_mpp=0.5, size_px=32, tiles_digest="ab" * 32, train_cases=(), histill="0.1.0",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    tracking: TrackingServer,
    tile_set: Callable[..., Manifest],
    draw_tile: Callable[..., tuple[np.ndarray, np.ndarray]],
) -> Path:
    """A labeled tile set of 64 px, a slide of sixteen such tiles, and a champion in the registry."""
    folder = tmp_path_factory.mktemp("tasks")
    tile_set(folder / "tiles", labels=True)
    resolution = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}  # 0.5 um/px
    tifffile.imwrite(folder / "a.svs", draw_tile(0, 256)[0], tile=(256, 256), photometric="rgb", **resolution)
    torch.manual_seed(0)
    (folder / "model").mkdir()
    model_folder.save(str(folder / "model"), model_folder.build(CARD), CARD)
    version = register(str(folder / "model"), "nuclei-student", {}, Tracking(uri=tracking.uri), Storage())
    MlflowClient(tracking.uri, tracking.uri).set_registered_model_alias("nuclei-student", "champion", version)
    return folder


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the blocks of the page have defined so far."""
    return {}


@pytest.fixture
def at_work(folder: Path, tracking: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)


def tasks() -> dict[str, tuple[str, str]]:
    """The language and text of each task's block."""
    sections = re.split(r"^## (?=\d+\. )", PAGE.read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for section in sections:
        ((language, block),) = re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        found[section.partition("\n")[0]] = (language, block)
    return found


def test_there_are_ten_of_at_most_ten_lines() -> None:
    found = tasks()
    assert [title.partition(".")[0] for title in found] == [str(number) for number in range(1, 11)]
    assert [title for title, (_, block) in found.items() if len(block.strip().splitlines()) > 10] == []


def check_tiles(names: dict[str, Any]) -> None:
    assert names["cases"].sum() == len(set(names["tiles"].table["case"].to_pylist()))


def check_batch(names: dict[str, Any]) -> None:
    assert names["batch"].student.shape == (8, 3, 32, 32)
    assert names["batch"].label.shape == (8,)


def check_champion(names: dict[str, Any]) -> None:
    torch.manual_seed(0)
    expected = model_folder.build(CARD).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in names["model"].network.state_dict().items())


def check_prediction(names: dict[str, Any]) -> None:
    assert names["nuclei"].shape == (8, 32, 32)
    torch.testing.assert_close(names["shares"].sum(1), torch.ones(8, 32, 32))


def check_embeddings(names: dict[str, Any]) -> None:
    import h5py

    assert names["embedded"].tiles == 16
    (file,) = Path(names["embedded"].predictions).glob("features/*.h5")
    with h5py.File(file) as features:
        assert features["features"].shape[-2] == 16


def check_run(names: dict[str, Any]) -> None:
    assert Path(names["run"].model, "model.safetensors").exists()


def check_metrics(names: dict[str, Any]) -> None:
    (metric,) = names["dice"]
    assert metric.value == pytest.approx(names["run"].metrics["val_dice"])
    assert metric.step == names["run"].metrics["step"]


def check_loss(names: dict[str, Any]) -> None:
    student, teacher = torch.randn(2, 3, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    student[2] = torch.nan
    found = names["match_logits"](student, teacher, torch.tensor([True, True, False]))
    gap = (student[:2] - teacher[:2]).double().numpy()
    assert float(found) == pytest.approx(np.mean((gap - gap.mean(1, keepdims=True)) ** 2))


def check_explanation(names: dict[str, Any]) -> None:
    assert "slides.slide_mpp" in names["printed"]


CHECKS = [
    check_tiles, check_batch, check_champion, check_prediction, check_embeddings, check_run, check_metrics, check_loss,
    check_explanation,
]  # fmt: skip


@pytest.mark.usefixtures("at_work")
@pytest.mark.parametrize("number", range(len(CHECKS)), ids=[check.__name__ for check in CHECKS])
def test_a_task_does_what_it_says(number: int, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    language, block = list(tasks().values())[number]
    if language == "python":
        exec(compile(block, f"task {number + 1}", "exec"), names)
    else:
        assert block.startswith("histill ")
        assert main(block.split()[1:]) == 0
    names["printed"] = capsys.readouterr().out
    CHECKS[number](names)


def test_prometheus_finds_the_nodes_metrics_where_the_page_says(head: RayHead) -> None:
    _, command = list(tasks().values())[9]
    told = re.fullmatch(r"prometheus --config.file=\$\{RAY_TMPDIR:-/tmp\}/ray/(\S+)\n", command)
    assert told is not None
    for _ in range(60):  # Ray writes its files, and exports what it has counted, every few seconds
        if any(b"\nray_" in read_metrics(target) for target in find_targets(head, told[1])):
            return
        time.sleep(1)
    raise AssertionError("no metrics of Ray's where its file for Prometheus points")


def find_targets(head: RayHead, config: str) -> list[str]:
    """The addresses that Prometheus would ask by the file `config` in the head's folder."""
    port = head.address.rpartition(":")[2]  # the host is written as another of this machine's names
    known = Path(tempfile.gettempdir()).glob("histill-ray-*/ray_current_cluster")
    folder = next((file.parent for file in known if file.read_text().rpartition(":")[2] == port), None)
    if folder is None or not (folder / config).exists():
        return []
    (job,) = yaml.safe_load((folder / config).read_text())["scrape_configs"]
    discovered = Path(*job["file_sd_configs"][0]["files"])
    groups = json.loads(discovered.read_text()) if discovered.exists() else []
    return [target for group in groups for target in group["targets"]]


def read_metrics(target: str) -> bytes:
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
        return bytes(answer.read())
