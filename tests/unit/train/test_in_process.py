"""Runs without Ray: as the loop alone trains them, resumed to the bit, and never from half a checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from histill.artifacts.model_folder import WEIGHTS_NAME
from histill.config.load import set_value, validate
from histill.config.pretrain_student import PretrainConfig
from histill.errors import InputError
from histill.tiles.manifest import Manifest
from histill.train import in_process
from histill.train.build import build_learner, build_streams
from histill.train.checkpoint import checkpoint_name
from histill.train.in_process import ProcessSession
from histill.train.launch import Trained, train_run
from histill.train.loop import Hooks, train
from histill.train.prepare import prepare_run

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
STEPS = 4  # two epochs of two
Make = Callable[..., PretrainConfig]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=12)  # 8 for training


def configure(manifest: Manifest, runs: Path, **changes: Any) -> PretrainConfig:
    """A run of two epochs of two steps, each of which saves."""
    keys: dict[str, Any] = {
        "name": "run", "runs": str(runs), "data": {"tiles": manifest.uri, "batch_size": 4},
        "student": {"encoder": "csat_tiny", "decoder_channels": (16, 16, 8, 8, 8), "size_px": 32},
        "teacher": {"classical": True}, "optimizer": {"epochs": 2, "lr": 2e-3, "ema": 0.5},
        "checkpoint_every": 1, "workers": {"count": 0},
    }  # fmt: skip
    for key, value in changes.items():
        keys = set_value(keys, key.replace("__", "."), value)
    return validate(PretrainConfig, keys, "the test")


@pytest.fixture
def configured(manifest: Manifest, tmp_path: Path) -> Make:
    return partial(configure, manifest, tmp_path)


def run(config: PretrainConfig, **how: Any) -> Trained:
    return train_run(prepare_run(config), lambda *_, **__: None, **how)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


class Killed(BaseException):
    """The process ends."""


@contextmanager
def killed_at(step: int, *, within: bool = False) -> Iterator[None]:
    """Runs end after the checkpoint of `step`, or `within` its writing, when its metrics are still missing."""
    report, copy = ProcessSession.report, in_process._copy

    def report_and_die(self: ProcessSession, metrics: dict[str, float], folder: str | None) -> None:
        report(self, metrics, folder)
        if metrics["step"] == step:
            raise Killed

    def copy_and_die(source: str, at: Any, target: str, to: Any) -> None:
        copy(source, at, target, to)
        if target.endswith(checkpoint_name(step)):
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessSession, "report", report_and_die)
        if within:
            patch.setattr(in_process, "_copy", copy_and_die)
        with pytest.raises(Killed):
            yield


@pytest.fixture(scope="module")
def expected(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights after the loop alone, without checkpoints."""
    spec = prepare_run(configure(manifest, tmp_path_factory.mktemp("alone")))
    learner = build_learner(spec, manifest, torch.device("cpu"))
    streams = build_streams(spec, manifest, 0, 1)
    train(learner, learner.model, spec.build_task(), *streams, spec.config, Hooks(lambda _: None, lambda _: None))
    return dict(learner.shipped.state_dict())


def assert_same_weights(trained: Trained, expected: dict[str, Tensor]) -> None:
    found = load_file(f"{trained.model}/{WEIGHTS_NAME}")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_run_is_the_loop_with_its_last_two_checkpoints(
    configured: Make, expected: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = run(configured())
    assert_same_weights(trained, expected)
    assert trained.model == f"{tmp_path}/run/step-00000004"
    assert (trained.metrics["epochs"], trained.metrics["step"], trained.metrics["tiles"]) == (2, STEPS, 8)
    assert json.loads((tmp_path / "run/step-00000004/.metadata.json").read_text()) == trained.metrics
    assert names(tmp_path / "run") == ["step-00000003", "step-00000004"]
    assert "run 100% 16/16 tiles" in capsys.readouterr().err
    with pytest.raises(InputError, match="is finished"):
        run(configured())


@pytest.mark.parametrize("within", [False, True], ids=["whole", "half written"])
def test_a_run_that_was_stopped_resumes_to_the_bit_from_its_newest_whole_checkpoint(
    configured: Make,
    expected: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    within: bool,
) -> None:
    with killed_at(3, within=within):
        run(configured())
    assert names(tmp_path / "run")[-1] == "step-00000003"
    assert (tmp_path / "run/step-00000003/.metadata.json").exists() != within
    (tmp_path / "run/step-00000003-copy").mkdir()  # of the user's own
    (tmp_path / "run/step-00000009").mkdir()  # begun by a process that had trained further
    capsys.readouterr()
    assert_same_weights(run(configured(workers__cpus=1)), expected)
    assert f"run: resuming from step {2 if within else 3} with 1 worker\n" in capsys.readouterr().err
    assert names(tmp_path / "run") == ["step-00000003", "step-00000003-copy", "step-00000004"]


def test_a_run_that_had_only_to_be_marked_finished_is(configured: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_at(STEPS):
        run(configured())
    trained = run(configured())
    assert (os.path.basename(trained.model), trained.metrics["step"]) == ("step-00000004", STEPS)


def test_checkpoints_that_only_ray_can_find_are_left_to_it(configured: Make, tmp_path: Path) -> None:
    """Those of a version that listed no contents."""
    (tmp_path / "run/step-00000001").mkdir(parents=True)
    (tmp_path / "run/checkpoint_manager_snapshot.json").write_text("{}")
    with pytest.raises(InputError, match=r"resume the run with workers\.count=1"):
        run(configured())
    assert names(tmp_path / "run") == ["step-00000001"]


@pytest.mark.parametrize(("changes", "threads"), [({}, 2), ({"workers__cpus": 3}, 3), ({"workers__cpus": 0.5}, 1)])
def test_torch_has_the_threads_that_were_set_or_its_own(
    configured: Make, monkeypatch: pytest.MonkeyPatch, changes: dict[str, float], threads: int
) -> None:
    seen: list[int] = []

    def stop(*_: Any) -> None:
        seen.append(torch.get_num_threads())
        raise Killed

    monkeypatch.setattr(in_process, "run_worker", stop)
    spec: Any = SimpleNamespace(config=configured(**changes))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(Killed):
            in_process.fit(spec, None, device=torch.device("cpu"), show=False)
        assert (seen, torch.get_num_threads()) == ([threads], 2)
    finally:
        torch.set_num_threads(before)


def test_a_gpu_that_is_not_there_is_missed_before_anything_is_written(configured: Make, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match=r"workers\.gpus is 1, and torch finds no CUDA GPU on this machine; leave it"):
        run(configured(workers__gpus=1))
    assert not (tmp_path / "run").exists()


def test_what_a_run_warns_of_is_shown(
    tmp_path: Path,
    tile_set: Callable[..., Manifest],
    spoil_tile: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = tile_set(tmp_path / "tiles", tiles=12)
    tile = spoil_tile(manifest, int(manifest.rows_of("train")[0]))
    trained = run(configure(manifest, tmp_path, data__max_corrupt=1, optimizer__epochs=1))
    (warned,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: tile ")]
    assert tile in warned
    assert trained.metrics["tiles"] == 8


def test_a_job_without_ray_ends_on_a_signal_and_imports_none_of_it(configured: Make, tmp_path: Path) -> None:
    keys = tmp_path / "run.yaml"
    keys.write_text(configured(optimizer__epochs=1000).model_dump_json())  # JSON is YAML
    job = (
        "import atexit, runpy, sys; atexit.register(lambda: print('ray' in sys.modules)); "
        f"sys.argv = ['job', '-c', {str(keys)!r}]; runpy.run_path('jobs/pretrain_student.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", job]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        begun = next(process.stderr)
        while not names(tmp_path / "run") and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, said = process.communicate(timeout=60)
    assert begun.startswith("run   0% ")
    assert (process.returncode, out) == (143, "False\n"), said
    lines = [line for line in said.splitlines() if not line.startswith("run ")]
    again = "the same command resumes from it (the signal once more ends it at once)."
    assert lines == [f"stopping; the newest checkpoint stays, and {again}"]
    assert names(tmp_path / "run")
