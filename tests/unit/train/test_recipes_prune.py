"""Pruning: a run that starts from the pruned student, whose card rebuilds it; and what is refused."""

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import histill
from histill.artifacts.model_folder import ModelCard, build, digest_of, load, save
from histill.config.common import Storage
from histill.config.finetune_student import FinetuneConfig
from histill.config.load import validate
from histill.config.prune_student import PruneConfig
from histill.errors import InputError
from histill.models.cost import measure_cost
from histill.models.pruning import prune_network
from histill.tiles.manifest import Manifest
from histill.train.prepare import prepare_run

pytestmark = pytest.mark.unit

STORAGE = Storage()
CARD = ModelCard(
    kind="classification", encoder="resnet_gn", decoder_channels=(), classes=("stroma", "tumour"),
    mean=(0.7, 0.5, 0.7), std=(0.2, 0.2, 0.2), tile_px=64, tile_mpp=0.5, size_px=64, tiles_digest="tiles",
    train_cases=("0123456789ab",), histill="0",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"), labels=True)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(2)
    folder = str(tmp_path_factory.mktemp("student"))
    save(folder, build(CARD), CARD)
    return folder


def keys(tiles: Manifest, student: str, runs: Path) -> dict[str, Any]:
    return {
        "name": "half", "runs": str(runs), "data": {"tiles": tiles.uri, "batch_size": 4}, "continue_from": student,
        "teacher": {"model": student}, "student": {"encoder": "resnet_gn"}, "optimizer": {"epochs": 1},
    }  # fmt: skip


def test_a_run_begins_with_the_pruned_student_and_its_model_can_be_opened(
    tiles: Manifest, student: str, tmp_path: Path
) -> None:
    config = validate(PruneConfig, keys(tiles, student, tmp_path), "the test")
    spec = prepare_run(config)
    full, _, _ = load(student, STORAGE)
    expected = prune_network(full, 64, 0.5, name="resnet_gn")
    begun = spec.build_network()
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in begun.state_dict().items())
    assert spec.card.shapes
    assert "0123456789ab" in spec.card.train_cases  # what the student has seen, the pruned one has

    trained = histill.prune_student(config, local=True)
    model, card, _ = load(trained.model, STORAGE)
    assert card.shapes == spec.card.shapes
    assert measure_cost(model, 64).macs <= 0.5 * measure_cost(full, 64).macs
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, begun.state_dict()[name])]
    assert "network.fc.weight" in changed
    further = {"target": "classification", "continue_from": trained.model, "name": "on", "runs": str(tmp_path)}
    further |= {"data": {"tiles": tiles.uri, "batch_size": 4}, "student": {"encoder": "resnet_gn"}}
    again = prepare_run(validate(FinetuneConfig, further, "the test"))
    assert again.card.shapes == card.shapes
    assert torch.equal(again.build_network().network.fc.weight, model.network.fc.weight)


def test_a_card_without_shapes_keeps_its_digest() -> None:
    later = {"val_cases", "taught_on", "unknown_teachers", "width", "taught_by", "prefixes", "teacher", "shapes", "icc"}
    later |= {"weights_sha256"}
    before = hashlib.sha256(CARD.model_dump_json(exclude=later).encode() + b"weights").hexdigest()
    assert digest_of(CARD, b"weights") == before
    assert digest_of(CARD.model_copy(update={"shapes": {"a": (1,)}}), b"weights") != before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"continue_from": None}, "continue_from names the student to prune"),
        ({"loss": {"features": {}}}, "terms on feature maps need the widths"),
        ({"loss": {"deep": {"weight": 0.4}}}, "terms on feature maps need the widths"),
        ({"macs": 1.0}, "macs"),
    ],
)
def test_what_cannot_be_pruned_or_compared_is_refused(
    changes: dict[str, Any], said: str, tiles: Manifest, student: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        validate(PruneConfig, keys(tiles, student, tmp_path) | changes, "the test")


def test_a_missing_package_is_named(
    tiles: Manifest, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch_pruning" else find(name))
    with pytest.raises(InputError, match=r"torch-pruning, which is not installed; `pip install 'histill\[pruning\]'`"):
        prepare_run(validate(PruneConfig, keys(tiles, student, tmp_path), "the test"))
