"""The launch of a run or a sweep, up to where Ray is needed."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.torch import TorchTrainer

from histill.config.common import Storage
from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig
from histill.errors import InputError
from histill.losses.layers import Layers
from histill.search.configs import PretrainSearch
from histill.search.sweep import PreparedSweep, run_sweep
from histill.stream.read import TileSource
from histill.stream.views import Views
from histill.train.claim import hold_claim
from histill.train.launch import train_run
from histill.train.ray import fit
from histill.train.recipes.pretrain import PretrainRun

pytestmark = pytest.mark.unit


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Any]:
    return {"name": "one", "runs": str(tmp_path), "data": {"tiles": "tiles"}, "teacher": {"classical": True}}


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing is tracked of a job that is refused")


def test_a_second_job_of_a_runs_name_is_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    config: Any = validate(PretrainConfig, keys, "the test")
    card: Any = SimpleNamespace(encoder="csat", size_px=64, teacher_name="none", classes=())
    source = TileSource("tiles", "digest", Storage())
    spec = PretrainRun(
        config=config, card=card, source=source, views=Views(64), inputs={"data.tiles": "f6"}, layers=Layers()
    )
    with hold_claim(str(tmp_path / "one"), Storage()), pytest.raises(InputError, match=r"another job .*/one"):
        train_run(spec, never)


def test_a_second_job_of_a_sweeps_name_is_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    config = validate(PretrainSearch, keys | {"space": {"optimizer.lr": {"uniform": [1, 2]}}}, "the test")
    with hold_claim(str(tmp_path / "one"), Storage()), pytest.raises(InputError, match=r"another job .*/one"):
        run_sweep(PreparedSweep(config, "val_dice"), never)


def test_the_record_is_closed_before_the_name_is_refused(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is killed in between can be repeated, and its tracked run does not stay RUNNING."""
    config: Any = validate(PretrainConfig, keys, "the test")
    card: Any = SimpleNamespace(encoder="csat", size_px=64, teacher_name="none", classes=())
    source = TileSource("tiles", "digest", Storage())
    spec = PretrainRun(
        config=config, card=card, source=source, views=Views(64), inputs={"data.tiles": "f6"}, layers=Layers()
    )
    ended = SimpleNamespace(
        checkpoint=SimpleNamespace(path=f"{tmp_path}/one/step-1"), metrics={"dice": 0.5}, best_checkpoints=[]
    )
    closed = []

    class Tracker:
        run_id = "1"

        def finish(self, status: str) -> None:
            closed.append((status, (tmp_path / "one" / "finished.json").exists()))

    monkeypatch.setattr("histill.train.ray.trainer.Trainer", lambda *_, **__: SimpleNamespace(fit=lambda: ended))
    monkeypatch.setattr(fit, "make_progress_actor", lambda: None)
    monkeypatch.setattr(fit, "show_progress", lambda *_, **__: nullcontext())
    for name in ("put", "kill"):
        monkeypatch.setattr(f"ray.{name}", lambda *_: None)
    trained = train_run(spec, lambda *_, **__: Tracker(), show=False)
    assert closed == [("FINISHED", False)]
    assert trained.metrics == {"dice": 0.5}
    assert (tmp_path / "one" / "finished.json").exists()


def test_ray_still_asks_a_method_for_its_answer_to_ctrl_c() -> None:
    """train/ray/trainer.py overrides this method; if Ray renames it, Ray would handle signals itself again."""
    assert callable(TorchTrainer._register_sigint_handler)


def test_what_needs_no_model_loads_no_torch() -> None:
    """Torch and timm take seconds to import, in processes that start before and alongside the workers."""
    train = ("histill.train.launch", "histill.train.ray.fit", "histill.train.ray.cleaner", "histill.train.recipes")
    names = (*train, "histill.search.configs", "histill.search.reports")
    code = f"import sys, {', '.join(names)}; print(sorted({{'torch', 'timm'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
