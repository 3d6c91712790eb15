"""A new loss term, teacher or kind of run is a file or two and a line: the examples of docs/extend.md as they stand."""

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

import histill.config
import histill.losses.loss
import histill.losses.terms
import histill.teachers
import histill.train.recipes
from histill.artifacts.model_folder import ModelCard, build, save
from histill.config import common
from histill.config.common import Storage
from histill.config.distill_student import DistillLoss
from histill.config.keys import dotted_keys
from histill.config.load import validate
from histill.config.pretrain_student import RckdLoss
from histill.config.runs import SupervisedLoss
from histill.errors import InputError
from histill.losses.loss import Loss, check_terms
from histill.outputs import OutputSpec
from histill.search.configs import _make_search
from histill.search.sweep import prepare_sweep
from histill.stream.tile_batch import TileBatch
from histill.tasks.responses import Responses
from histill.tasks.training_task import TrainingTask
from histill.teachers.teacher import load_teacher
from histill.testing.teachers import check_teacher
from histill.tiles.manifest import Manifest
from histill.train.build import build_learner, build_streams
from histill.train.loop import Hooks, train
from histill.train.prepare import prepare_run
from histill.train.recipes import RECIPES, Recipe

pytestmark = pytest.mark.unit

EXTEND = Path(__file__).parents[2] / "docs" / "extend.md"
OUTPUTS = OutputSpec("segmentation", ("glass", "tissue"))


def examples(section: str) -> list[str]:
    """The blocks of code in a section of the page."""
    text = EXTEND.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def put_in(package: ModuleType, name: str, source: str, folder: Path) -> ModuleType:
    """A module of `package`, as if its file lay there."""
    (folder / f"{name}.py").write_text(source)
    package.__path__.append(str(folder))
    importlib.invalidate_caches()
    return importlib.import_module(f"{package.__name__}.{name}")


def with_line(base: type, line: str, names: dict[str, Any]) -> Any:
    """`base` with one more line in its body."""
    names = {**vars(sys.modules[base.__module__]), **names, "base": base}
    exec(f"class Extended(base):\n{line}", names)
    return names["Extended"]


@pytest.fixture
def extended(tmp_path: Path) -> Iterator[Callable[[type[Loss]], Any]]:
    """Adds the example's term to a loss."""
    source, line, *_ = examples("A term of a loss")
    module = put_in(histill.losses.terms, "logit_matching", source, tmp_path)
    yield lambda base: with_line(base, line, vars(module))
    histill.losses.terms.__path__.remove(str(tmp_path))
    del sys.modules[module.__name__]


def batch(teacher: np.ndarray) -> TileBatch:
    """Two tiles and a padded row, and cached responses that are logits of `teacher`, near enough."""
    levels = torch.from_numpy(np.round(teacher * 12.7 + 128)).to(torch.uint8)
    return TileBatch(
        student=torch.zeros(3, 3, 4, 4, dtype=torch.uint8),
        teacher=None,
        valid=torch.tensor([True, True, False]),
        index=torch.tensor([0, 1, -1]),
        label=None,
        mask=None,
        response=levels,
        planned=2,
    )


class Fixed(nn.Module):
    """Says what it is told to."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.from_numpy(logits))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.logits


@pytest.mark.parametrize("base", [RckdLoss, DistillLoss])
def test_the_example_is_a_term_of_every_job_that_has_a_teacher(
    extended: Callable[[type[Loss]], Any], base: type[Loss]
) -> None:
    loss = extended(base)
    assert {"logit_matching.weight", "logit_matching.scale"} <= set(dotted_keys(loss))
    alone = dict.fromkeys(base().terms) | {"deep": None, "logit_matching": {"weight": 0.5, "scale": 2.0}}
    objective = validate(loss, alone, "the test")
    random = np.random.default_rng(0)
    said, wanted = random.normal(0, 2, (3, 2, 4, 4)), np.round(random.normal(0, 2, (3, 1, 4, 4)) * 12.7) / 12.7
    said[2] = np.nan  # a padded row
    model = Fixed(said)
    found = TrainingTask(OUTPUTS, objective, Responses(None)).loss(model, batch(wanted))
    gap = said[:2] - np.concatenate([np.zeros_like(wanted), wanted], 1)[:2]
    expected = np.mean(((gap - gap.mean(1, keepdims=True)) / 2) ** 2)
    assert found.parts["logit_matching"].item() == pytest.approx(expected, rel=1e-5)
    assert found.loss.item() == pytest.approx(0.5 * expected, rel=1e-5)
    found.loss.backward()
    assert model.logits.grad is not None
    assert model.logits.grad.isfinite().all()


def test_a_job_without_a_teacher_refuses_it_in_a_sentence(extended: Callable[[type[Loss]], Any]) -> None:
    objective = validate(extended(SupervisedLoss), {"logit_matching": {}}, "the test")
    with pytest.raises(InputError, match=r"^loss\.logit_matching compares with a teacher, .*loss\.logit_matching=null"):
        check_terms(objective, teacher=False, live=False, dense=True, multi_label=False)


def test_every_file_of_terms_is_in_the_table() -> None:
    kinds = [kind for field in Loss.model_fields.values() for kind in get_args(field.annotation)]
    table = {kind.__module__ for kind in kinds}
    files = {each.name for each in pkgutil.iter_modules(histill.losses.terms.__path__, "histill.losses.terms.")}
    assert files <= table
    assert len(files) == len(Loss.model_fields) - 1  # deep supervision applies the others


@pytest.mark.parametrize("nothing", [None, {"weight": 0}, {"weight": 0.0}, {"weight": None}], ids=str)
@pytest.mark.parametrize("base", [RckdLoss, DistillLoss, SupervisedLoss])
def test_null_and_a_weight_of_0_leave_a_term_out_of_every_job(base: type[Loss], nothing: Any) -> None:
    for name in base().terms:
        loss = validate(base, {"decoupled": {}, name: nothing}, "the test")
        assert loss.terms.keys() == ({"decoupled", *base().terms} - {name})


def test_the_example_is_a_teacher_like_any_other(
    tmp_path: Path, draw_tile: Callable[[int, int], tuple[np.ndarray, np.ndarray]]
) -> None:
    source, line, *_ = examples("A teacher")
    module = put_in(histill.teachers, "tissue", source, tmp_path)
    try:
        configuration = with_line(common.Teacher, line, {})
        tiles = torch.from_numpy(np.stack([draw_tile(seed, 64)[0] for seed in range(3)])).permute(0, 3, 1, 2)
        teacher = load_teacher(validate(configuration, {"tissue": 0.85}, "the test"), 0.5, Storage())
        check_teacher(teacher, tiles)
        assert teacher.outputs == OUTPUTS
        with pytest.raises(InputError, match=r"exactly one of teacher\.classical=true, .* and teacher\.tissue=0\.85"):
            validate(configuration, {"tissue": 0.85, "classical": True}, "the test")
    finally:
        histill.teachers.__path__.remove(str(tmp_path))
        del sys.modules[module.__name__]


def test_a_teacher_that_answers_otherwise_in_a_batch_is_found_out() -> None:
    class Averaging:
        outputs, mpp, features, license, digest = OUTPUTS, None, None, None, "ab" * 32

        def sees(self, side_px: int) -> int:
            return side_px

        def respond(self, tiles: torch.Tensor) -> torch.Tensor:
            mean = tiles.float().mean()
            return torch.full((len(tiles), 2, *tiles.shape[-2:]), float(mean))

    tiles = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).to(torch.uint8)
    with pytest.raises(AssertionError, match="tile 0 has other logits alone"):
        check_teacher(Averaging(), tiles)


def test_the_example_is_a_kind_of_run_that_trains_and_is_swept(
    tmp_path: Path, tile_set: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration, recipe, line = examples("A kind of run")
    configs, recipes = [tmp_path / name for name in ("config", "recipes")]
    for folder in (configs, recipes):
        folder.mkdir()
    monkeypatch.setattr(histill.config, "__path__", list(histill.config.__path__))
    monkeypatch.setattr(histill.train.recipes, "__path__", list(histill.train.recipes.__path__))
    kind = put_in(histill.config, "probe_encoder", configuration, configs).ProbeConfig
    put_in(histill.train.recipes, "probe", recipe, recipes)
    added = eval("{" + line + "}", {"Recipe": Recipe, "ProbeConfig": kind})
    monkeypatch.setitem(RECIPES, "probe_encoder", added["probe_encoder"])  # type: ignore[arg-type]

    manifest = tile_set(tmp_path / "tiles", tiles=12, labels=True)
    student = {"encoder": "csat_tiny", "size_px": 32}
    card = ModelCard(
        encoder="csat_tiny", decoder_channels=(16, 16, 8, 8, 8), classes=("background", "nucleus"),
        mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), tile_px=64, tile_mpp=0.5, size_px=64, tiles_digest="tiles",
        train_cases=(), histill="0",
    )  # fmt: skip
    (tmp_path / "pretrained").mkdir()
    torch.manual_seed(3)
    save(str(tmp_path / "pretrained"), build(card), card)
    keys = {
        "name": "probe", "runs": str(tmp_path / "runs"), "data": {"tiles": manifest.uri, "batch_size": 8},
        "encoder": str(tmp_path / "pretrained"), "student": student, "optimizer": {"epochs": 2},
        "workers": {"count": 1},
    }  # fmt: skip
    spec = prepare_run(validate(kind, keys, "the test"))
    assert set(spec.inputs) == {"data.tiles", "encoder"}
    learner = build_learner(spec, manifest, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in learner.model.named_parameters()}
    reports: list[dict[str, float]] = []
    streams = build_streams(spec, manifest, 0, 1)
    train(learner, learner.model, spec.build_task(), *streams, spec.config, Hooks(lambda _: None, reports.append))
    assert reports[-1]["loss"] < reports[0]["loss"]
    learned = {name for name, tensor in learner.model.named_parameters() if not torch.equal(tensor, before[name])}
    assert learned
    assert learned == {name for name, tensor in learner.model.named_parameters() if tensor.requires_grad}

    search = _make_search(kind)
    space = {"student.size_px": {"choice": (32, 128)}}
    with pytest.raises(InputError, match=r"^space\.student\.size_px: the network would see 128 px"):
        prepare_sweep(validate(search, keys | {"name": "sweep", "space": space}, "the test"))
