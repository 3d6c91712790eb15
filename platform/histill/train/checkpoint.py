"""Checkpoints: a model folder plus the optimiser's tensors and the loop's position. Nothing is pickled."""

import os
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from histill.artifacts.model_folder import WEIGHTS_NAME, ModelCard, save
from histill.config.base import Strict
from histill.errors import InputError

OPTIMISER_NAME = "optimiser.safetensors"
POSITION_NAME = "position.json"


class Position(Strict):
    """The ledger: the next global batch is number `step` of `epoch`, so everything before it is consumed.

    It is complete because the plan's global batches do not depend on the number of workers.
    """

    epoch: int = 0
    step: int = 0
    batch_size: int
    tiles_digest: str


@dataclass
class Learner:
    """What learns, and what a checkpoint must bring back."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    position: Position


def save_checkpoint(folder: str, learner: Learner, card: ModelCard) -> None:
    """Write the learner into an existing local folder."""
    save(folder, learner.model, card)
    state = learner.optimiser.state_dict()["state"]
    tensors = {
        f"{index}.{key}": torch.as_tensor(value) for index, values in state.items() for key, value in values.items()
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, os.path.join(folder, OPTIMISER_NAME))
    with open(os.path.join(folder, POSITION_NAME), "w", encoding="utf-8") as file:
        file.write(learner.position.model_dump_json(indent=2) + "\n")


def restore_checkpoint(folder: str, learner: Learner) -> None:
    """Bring `learner` to the state saved in the local `folder`.

    Raises InputError when the checkpoint belongs to other tiles or another global batch size.
    """
    with open(os.path.join(folder, POSITION_NAME), encoding="utf-8") as file:
        position = Position.model_validate_json(file.read())
    expected = learner.position
    if (position.tiles_digest, position.batch_size) != (expected.tiles_digest, expected.batch_size):
        raise InputError(
            f"the checkpoint was made with batch size {position.batch_size} on tiles {position.tiles_digest[:12]}, "
            f"this run has {expected.batch_size} and {expected.tiles_digest[:12]}; use another run name."
        )
    learner.model.load_state_dict(load_file(os.path.join(folder, WEIGHTS_NAME)))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(os.path.join(folder, OPTIMISER_NAME)).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    learner.optimiser.load_state_dict({"state": state, "param_groups": learner.optimiser.state_dict()["param_groups"]})
    learner.position = position
