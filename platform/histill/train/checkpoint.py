"""Checkpoints: a model folder plus the optimizer's tensors and the loop's position. Nothing is pickled."""

import errno
import os
import socket
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn

from histill.artifacts.model_folder import WEIGHTS_NAME, ModelCard, save_weights
from histill.config.common import Storage
from histill.errors import HistillError, InputError
from histill.models.projection import ProjectedStudent
from histill.storage.control import read_bytes
from histill.storage.records import parse_record, record_bytes
from histill.storage.uris import join
from histill.train.best import Best, BestRecord
from histill.train.coverage import DataState
from histill.train.newest import list_contents
from histill.train.run_folder import CHECKPOINTS

OPTIMIZER_NAME = "optimizer.safetensors"
LEARNED_NAME = "learned.safetensors"  # the trained module, where it differs from the shipped model
CURRENT_NAME = "current.safetensors"  # the shipped model as it is now, where an average, and the best model is kept
BEST_NAME = "best.json"  # what is known of the kept model, where that is the best so far
TASK_NAME = "task.safetensors"  # the task's state, if it has any
POSITION_NAME = "position.json"
_SHIPPED = "model."  # the part of a module in training that is shipped


@dataclass
class Learner:
    """The module in training and all other state that a checkpoint restores."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    position: DataState
    average: ModelEmaV3 | None = None  # of the weights, if configured
    best: Best | None = None  # which the run ends with, if configured
    task_state: dict[str, torch.Tensor] = field(default_factory=dict)  # of all workers' tasks; see train/task_state.py

    @property
    def shipped(self) -> nn.Module:
        """The model that is scored: the average if there is one, without training-only modules."""
        whole = self.model if self.average is None else self.average.module
        return whole.model if isinstance(whole, ProjectedStudent) else whole

    @property
    def kept(self) -> dict[str, torch.Tensor]:
        """The weights that are saved: of the shipped model, or of the best so far."""
        return self.best.weights if self.best and self.best.weights else self.shipped.state_dict()

    def restart_average(self) -> None:
        """Average from the model as it is now."""
        if self.average is not None:
            self.average.set(self.model)

    def average_step(self, step: int) -> None:
        """Update the moving average after the optimizer's global `step`; the decay is lower during warm-up."""
        if self.average is not None:
            self.average.update(self.model, step=step)


def checkpoint_name(step: int) -> str:
    """Folder name, within the run folder, of the checkpoint after `step` global steps."""
    return f"{CHECKPOINTS}{step:08d}"


def save_checkpoint(folder: str, learner: Learner, card: ModelCard) -> None:
    """Write the learner into an existing local folder. Raises HistillError when the disk is full."""
    try:
        _write(folder, learner, card)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
            raise
        raise HistillError(
            f"the disk of {os.path.dirname(folder)} on {socket.gethostname()} is full, and checkpoints are written "
            "there before upload; free some space, or set TMPDIR to another disk there, and run the same command "
            "again: the run resumes from its last checkpoint.",
            code="disk-full",
        ) from None


def _write(folder: str, learner: Learner, card: ModelCard) -> None:
    best = learner.best if learner.best and learner.best.weights else None
    save_weights(folder, learner.kept, card)
    if best is not None or learner.shipped is not learner.model:
        _save_module(os.path.join(folder, LEARNED_NAME), learner.model)
    if best is not None:
        if learner.average is not None:
            _save_module(os.path.join(folder, CURRENT_NAME), learner.shipped)
        with open(os.path.join(folder, BEST_NAME), "wb") as file:
            file.write(record_bytes(best.record))
    state = learner.optimizer.state_dict()["state"]
    tensors = {
        f"{index}.{key}": torch.as_tensor(value) for index, values in state.items() for key, value in values.items()
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, os.path.join(folder, OPTIMIZER_NAME))
    if learner.task_state:
        save_file(learner.task_state, os.path.join(folder, TASK_NAME))
    with open(os.path.join(folder, POSITION_NAME), "wb") as file:
        file.write(record_bytes(learner.position))
    list_contents(folder)


def _save_module(path: str, module: nn.Module) -> None:
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)


def continue_modules(model: nn.Module, folder: str, storage: Storage) -> None:
    """Give the training-only modules of `model` the weights they had in the checkpoint `folder`, if they are the same.

    Others, and those of a model folder that is no checkpoint, begin anew.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(_SHIPPED)}
    try:
        found = load(read_bytes(join(folder, LEARNED_NAME), storage)) if own else {}
    except FileNotFoundError:
        return
    given = {name: tensor for name, tensor in found.items() if not name.startswith(_SHIPPED)}
    if {name: tensor.shape for name, tensor in given.items()} == {name: tensor.shape for name, tensor in own.items()}:
        model.load_state_dict(given, strict=False)


def restore_checkpoint(folder: str, learner: Learner) -> None:
    """Load the state saved in the local `folder` into `learner`.

    Raises InputError when the checkpoint belongs to other tiles, another global batch size, or a version of histill
    with other training-only modules.
    """
    with open(os.path.join(folder, POSITION_NAME), "rb") as file:
        position = parse_record(DataState, file.read(), file.name)
    expected = learner.position
    if (position.tiles_digest, position.batch_size) != (expected.tiles_digest, expected.batch_size):
        raise InputError(
            f"the checkpoint was made with batch size {position.batch_size} on tiles {position.tiles_digest[:12]}, "
            f"this run has {expected.batch_size} and {expected.tiles_digest[:12]}; use another run name.",
            code="run-of-other-config",
        )
    kept = load_file(os.path.join(folder, WEIGHTS_NAME))
    with_best = learner.best is not None and os.path.exists(os.path.join(folder, BEST_NAME))
    if with_best and learner.average is not None:
        learner.shipped.load_state_dict(load_file(os.path.join(folder, CURRENT_NAME)))
    elif not with_best:
        learner.shipped.load_state_dict(kept)
    if with_best or learner.shipped is not learner.model:
        try:
            learner.model.load_state_dict(load_file(os.path.join(folder, LEARNED_NAME)))
        except RuntimeError:  # torch lists every tensor
            raise InputError(
                "the checkpoint was made by a version of histill whose modules for training differ from this one's; "
                "use another run name.",
                code="other-version",
            ) from None
    if with_best:
        assert learner.best is not None
        with open(os.path.join(folder, BEST_NAME), "rb") as file:
            learner.best.restore(parse_record(BestRecord, file.read(), file.name), kept)
    memory = os.path.join(folder, TASK_NAME)  # absent from checkpoints of earlier versions
    learner.task_state = load_file(memory) if os.path.exists(memory) else {}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(os.path.join(folder, OPTIMIZER_NAME)).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    learner.optimizer.load_state_dict({"state": state, "param_groups": learner.optimizer.state_dict()["param_groups"]})
    learner.position = position
