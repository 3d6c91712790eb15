"""Checkpoints: a resumed run equals one that never stopped, and no checkpoint file is a pickle."""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from histill.artifacts.model_folder import ModelCard, build, load
from histill.config.common import Storage
from histill.config.runs import Optimizer
from histill.errors import HistillError, InputError
from histill.losses.layers import Layers
from histill.models.projection import ProjectedStudent, StudentOutput
from histill.train.best import Best
from histill.train.checkpoint import Learner, checkpoint_name, restore_checkpoint, save_checkpoint
from histill.train.coverage import DataState
from histill.train.schedule import make_optimizer

pytestmark = pytest.mark.unit

CARD = ModelCard(
    encoder="csat_tiny",
    decoder_channels=(16, 16, 8, 8, 8),
    classes=("background", "nucleus"),
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    tile_px=32,
    tile_mpp=0.5,
    size_px=32,
    tiles_digest="tiles",
    train_cases=(),
    histill="0",
)


def learner(seed: int, *, deep: bool = False, optimizer: str = "adamw", **position: object) -> Learner:
    torch.manual_seed(seed)
    model = build(CARD)
    model = ProjectedStudent(model, Layers(), deep_classes=len(CARD.classes)) if deep else model
    place = DataState.model_validate({"batch_size": 4, "tiles_digest": "tiles"} | position)
    config = Optimizer.model_validate({"lr": 1e-3, "name": optimizer})
    return Learner(model, make_optimizer([list(model.parameters())], config), place)


def step(learner: Learner, number: int) -> None:
    random = torch.Generator().manual_seed(number)
    tiles = torch.rand(2, 3, 32, 32, generator=random) * 255
    torch.manual_seed(number)  # drop-path
    learner.optimizer.zero_grad(set_to_none=True)
    learner.model.train()
    output = learner.model(tiles)
    answers = (output.logits, *output.deep) if isinstance(output, StudentOutput) else (output,)
    sum(answer.square().mean() for answer in answers).backward()
    learner.optimizer.step()


@pytest.mark.parametrize(("deep", "optimizer"), [(False, "adamw"), (True, "adamw"), (False, "muon")])
def test_going_on_from_a_checkpoint_is_bit_equal_to_never_having_stopped(
    tmp_path: Path, deep: bool, optimizer: str
) -> None:
    through, stopped = (learner(0, deep=deep, optimizer=optimizer) for _ in range(2))
    for number in range(4):
        step(through, number)
    for number in range(2):
        step(stopped, number)
    place = {"epoch": 3, "step": 2, "tiles": 7, "corrupt": 1, "tally": -(2**63), "before": (9, 5)}
    stopped.position = stopped.position.model_copy(update=place)
    save_checkpoint(str(tmp_path), stopped, CARD)
    resumed = learner(99, deep=deep, optimizer=optimizer)
    restore_checkpoint(str(tmp_path), resumed)
    assert resumed.position == stopped.position
    assert {name: getattr(resumed.position, name) for name in place} == place
    for number in range(2, 4):
        step(resumed, number)
    for name, tensor in through.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    moments = resumed.optimizer.state_dict()["state"]
    for index, values in through.optimizer.state_dict()["state"].items():
        assert values.keys() == moments[index].keys()
        assert all(torch.equal(torch.as_tensor(value), moments[index][key]) for key, value in values.items())


def test_a_checkpoint_of_an_untouched_learner_comes_back(tmp_path: Path) -> None:
    first, second = learner(0), learner(1)
    save_checkpoint(str(tmp_path), first, CARD)
    restore_checkpoint(str(tmp_path), second)
    step(first, 0)
    step(second, 0)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name


def test_a_checkpoint_is_safetensors_and_json(tmp_path: Path) -> None:
    trained = learner(0)
    step(trained, 0)
    save_checkpoint(str(tmp_path), trained, CARD)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["contents.json", "model.json", "model.safetensors", "optimizer.safetensors", "position.json"]
    for path in tmp_path.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            with safe_open(path, "pt") as file:
                assert len(list(file.keys())) > 10
        start = path.read_bytes()[:2]
        assert start not in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")


@pytest.mark.parametrize("deep", [False, True])
def test_the_best_model_is_what_a_checkpoint_is_loaded_as(tmp_path: Path, deep: bool) -> None:
    trained = replace(learner(0, deep=deep), best=Best("dice"))
    assert trained.best is not None
    trained.best.offer(trained.shipped, {"dice": 0.5, "miou": float("nan")}, 7)
    best = {name: tensor.clone() for name, tensor in trained.shipped.state_dict().items()}
    step(trained, 0)
    trained.best.offer(trained.shipped, {"dice": 0.4, "miou": 0.3}, 9)
    save_checkpoint(str(tmp_path), trained, CARD)
    kept, _, _ = load(str(tmp_path), Storage())
    assert all(torch.equal(tensor, best[name]) for name, tensor in kept.state_dict().items())
    resumed = replace(learner(1, deep=deep), best=Best("dice"))
    restore_checkpoint(str(tmp_path), resumed)
    assert resumed.best is not None
    assert (resumed.best.record, resumed.best.value) == (trained.best.record, 0.5)
    assert all(torch.equal(tensor, best[name]) for name, tensor in resumed.kept.items())
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_what_is_kept_has_no_heads_for_training(tmp_path: Path) -> None:
    trained = learner(0, deep=True)
    save_checkpoint(str(tmp_path), trained, CARD)
    kept, card, _ = load(str(tmp_path), Storage())
    assert card.model_copy(update={"weights_sha256": None}) == CARD
    assert kept.state_dict().keys() == build(CARD).state_dict().keys()


@pytest.mark.parametrize(
    ("changed", "named"), [({"batch_size": 8}, "batch size 4 .* this run has 8"), ({"tiles_digest": "other"}, "other")]
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, changed: dict[str, object], named: str) -> None:
    save_checkpoint(str(tmp_path), learner(0), CARD)
    other = learner(1, **changed)
    before = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
    with pytest.raises(InputError, match=named):
        restore_checkpoint(str(tmp_path), other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.model.state_dict().items())


def test_a_checkpoint_without_the_modules_for_training_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Such as one of embeddings from before their projections normalized."""
    save_checkpoint(str(tmp_path), learner(0, deep=True), CARD)
    path = tmp_path / "learned.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("heads.")}
    save_file(kept, path)
    with pytest.raises(InputError, match=r"^the checkpoint was made by a version of .*; use another run name\.$"):
        restore_checkpoint(str(tmp_path), learner(1, deep=True))


def test_checkpoints_sort_by_their_steps() -> None:
    names = [checkpoint_name(step) for step in (4, 30, 100_000, 99_999_999)]
    assert names == sorted(names) == ["step-00000004", "step-00000030", "step-00100000", "step-99999999"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`disk(bytes)`: a folder on a file system of that size."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("share", [0.5, 1.5], ids=["within the weights", "within the optimizer's tensors"])
def test_a_full_disk_is_named(small_disk: Callable[[int], Path], share: float) -> None:
    trained = learner(0)
    step(trained, 0)
    disk = small_disk(int(share * sum(4 * weights.numel() for weights in trained.model.parameters())))
    folder = disk / "histill-abc"
    folder.mkdir()
    with pytest.raises(HistillError) as caught:
        save_checkpoint(str(folder), trained, CARD)
    message = str(caught.value)
    assert message.startswith(f"the disk of {disk} on {socket.gethostname()} is full")
    assert "set TMPDIR" in message
    assert "the run resumes from its last checkpoint." in message
    assert "\n" not in message
    assert (folder / "model.safetensors").exists() == (share > 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
@pytest.mark.parametrize("name", ["model.json", "position.json"])
def test_a_disk_that_is_full_at_the_last_bytes_is_named_as_well(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(HistillError, match=f"the disk of {tmp_path.parent} on .* is full"):
        save_checkpoint(str(tmp_path), learner(0), CARD)


def test_another_failure_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="No such file or directory") as caught:
        save_checkpoint(str(tmp_path / "missing"), learner(0), CARD)
    assert not isinstance(caught.value, HistillError)
    (tmp_path / "position.json").mkdir()
    with pytest.raises(IsADirectoryError):
        save_checkpoint(str(tmp_path), learner(0), CARD)
