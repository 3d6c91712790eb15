"""A finished run is trained longer by another one that starts from all of its weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from histill.artifacts.model_folder import read_card
from histill.config.common import Storage
from histill.config.finetune_student import FinetuneConfig
from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig
from histill.config.runs import RunConfig
from histill.config.train_teacher import TeacherConfig
from histill.errors import InputError
from histill.tiles.manifest import Manifest, case_digests
from histill.train.build import build_learner
from histill.train.checkpoint import Learner, save_checkpoint
from histill.train.prepare import prepare_run
from histill.train.run_folder import write_result

pytestmark = pytest.mark.unit
NETWORK = {"encoder": "csat_tiny", "decoder_channels": (16, 16, 8, 8, 8)}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("labeled"), tiles=24, tile_px=64, labels=True)


def configured(kind: type[RunConfig], manifest: Manifest, runs: Path, **changes: Any) -> Any:
    data = {"name": "first", "runs": str(runs), "data": {"tiles": manifest.uri, "batch_size": 4}}
    return validate(kind, data | changes, "the test")


def finish(config: Any, manifest: Manifest) -> Learner:
    """Make a finished run of `config`, whose weights are like no others."""
    spec = prepare_run(config)
    learner = build_learner(spec, manifest, torch.device("cpu"))
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.add_(0.25)
    learner.restart_average()
    folder = Path(config.runs, config.name, "step-00000004")
    folder.mkdir(parents=True)
    save_checkpoint(str(folder), learner, spec.card)
    write_result(config, str(folder), {})
    return learner


def begin(config: Any, manifest: Manifest) -> Learner:
    return build_learner(prepare_run(config), manifest, torch.device("cpu"))


def state_of(learner: Learner) -> dict[str, torch.Tensor]:
    return dict(learner.model.state_dict())


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (TeacherConfig, {"network": NETWORK}),
        (FinetuneConfig, {"target": "classification", "student": {"encoder": "csat_tiny"}}),
        (PretrainConfig, {"teacher": {"classical": True}, "student": NETWORK}),  # with heads on deep stages
    ],
)
def test_all_weights_are_those_of_the_finished_run_and_nothing_else(
    labeled: Manifest, tmp_path: Path, kind: type[RunConfig], keys: dict[str, Any]
) -> None:
    done = finish(configured(kind, labeled, tmp_path, **keys), labeled)
    longer = configured(kind, labeled, tmp_path, name="longer", continue_from=str(tmp_path / "first"), **keys)
    spec = prepare_run(longer)
    learner = build_learner(spec, labeled, torch.device("cpu"))
    torch.testing.assert_close(state_of(learner), state_of(done), rtol=0, atol=0)
    assert learner.position.step == learner.position.epoch == 0
    assert not learner.optimizer.state
    assert set(spec.inputs) == {"data.tiles", "continue_from"} | ({"teacher.model"} if "teacher" in keys else set())
    if kind is FinetuneConfig:
        training: Any = None  # no tile is read to fit a head
        spec.initialize(learner, training)
        torch.testing.assert_close(state_of(learner), state_of(done), rtol=0, atol=0)


def test_the_lineage_of_the_finished_run_is_inherited(labeled: Manifest, tmp_path: Path) -> None:
    keys = {"target": "classification", "student": {"encoder": "csat_tiny"}, "fraction": 0.5}
    finish(configured(FinetuneConfig, labeled, tmp_path, **keys, fraction_seed=1), labeled)
    longer = configured(
        FinetuneConfig, labeled, tmp_path, name="b", continue_from=str(tmp_path / "first"), **keys, fraction_seed=4
    )
    spec = prepare_run(longer)
    first = read_card(str(tmp_path / "first" / "step-00000004"), Storage())
    own = case_digests(labeled, "train", spec.cases)
    assert set(own) != set(first.train_cases)
    assert set(spec.card.train_cases) == {*own, *first.train_cases}


def test_modules_for_training_that_differ_begin_anew(labeled: Manifest, tmp_path: Path) -> None:
    teacher = {"classical": True}
    done = finish(configured(PretrainConfig, labeled, tmp_path, teacher=teacher, student=NETWORK), labeled)
    bare = configured(
        PretrainConfig, labeled, tmp_path, name="bare", teacher=teacher, student=NETWORK, loss={"deep": None},
        continue_from=str(tmp_path / "first"),
    )  # fmt: skip
    shipped = {
        name.removeprefix("model."): tensor for name, tensor in state_of(done).items() if name.startswith("model.")
    }
    assert len(shipped) < len(state_of(done))
    torch.testing.assert_close(state_of(begin(bare, labeled)), shipped, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": {**NETWORK, "encoder": "resnet18"}}, "set network.encoder=csat_tiny"),
        ({"network": {**NETWORK, "decoder_channels": (16, 16, 8, 8, 4)}}, "whose decoder_channels is 16, 16, 8, 8, 8"),
        (
            {"classes": ("background", "gland")},
            "whose classes is background, nucleus, and this run",
        ),
        ({"target": "classification"}, "whose kind is segmentation"),
    ],
)
def test_another_model_is_refused(labeled: Manifest, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    finish(configured(TeacherConfig, labeled, tmp_path, network=NETWORK), labeled)
    keys = {"network": NETWORK, **changes}
    with pytest.raises(InputError) as refused:
        prepare_run(
            configured(TeacherConfig, labeled, tmp_path, name="b", continue_from=str(tmp_path / "first"), **keys)
        )
    assert said in str(refused.value)
    assert refused.value.code == "weights-do-not-fit"


def test_another_resolution_of_what_the_network_sees_is_told(
    labeled: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"target": "classification", "student": {"encoder": "csat_tiny", "size_px": 64}}
    finish(configured(FinetuneConfig, labeled, tmp_path, **keys), labeled)
    start = {"continue_from": str(tmp_path / "first")}
    prepare_run(configured(FinetuneConfig, labeled, tmp_path, name="same", **keys, **start))
    assert "warning" not in capsys.readouterr().err
    keys["student"] = {"encoder": "csat_tiny", "size_px": 32}
    prepare_run(configured(FinetuneConfig, labeled, tmp_path, name="coarse", **keys, **start))
    assert "first has seen tiles at 0.5 um/px, and this run shows them at 1;" in capsys.readouterr().err


def test_an_encoder_beside_it_is_one_too_many(labeled: Manifest, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="continue_from brings all weights; leave it out, or leave out encoder and student"
    ):
        configured(FinetuneConfig, labeled, tmp_path, target="segmentation", continue_from="runs/a", encoder="runs/b")
