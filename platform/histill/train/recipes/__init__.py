"""Kinds of training runs: one file each with its checks, model and task, and one line in `RECIPES`."""

from collections.abc import Mapping
from dataclasses import dataclass

from histill.config.distill_student import DistillConfig
from histill.config.finetune_student import FinetuneConfig
from histill.config.pretrain_student import PretrainConfig
from histill.config.prune_student import PruneConfig
from histill.config.runs import RunConfig
from histill.config.train_teacher import TeacherConfig


@dataclass(frozen=True)
class Recipe:
    """A kind of run. Its module is given by name, so that listing the kinds does not import torch.

    The module's `check(config, inputs)` returns the run's `RunSpec` or raises InputError; it does no I/O.
    """

    config: type[RunConfig]
    module: str


RECIPES: Mapping[str, Recipe] = {
    "pretrain_student": Recipe(PretrainConfig, "histill.train.recipes.pretrain"),
    "distill_student": Recipe(DistillConfig, "histill.train.recipes.distill"),
    "finetune_student": Recipe(FinetuneConfig, "histill.train.recipes.finetune"),
    "prune_student": Recipe(PruneConfig, "histill.train.recipes.prune"),
    "train_teacher": Recipe(TeacherConfig, "histill.train.recipes.teacher"),
}
