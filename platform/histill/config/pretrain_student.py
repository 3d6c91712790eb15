"""Configuration of `pretrain_student.py`."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from histill.config.base import Uri
from histill.config.common import Teacher
from histill.config.runs import STRIDE, Network, RunConfig, Sources
from histill.losses.loss import DeepSupervision, Loss
from histill.losses.terms.soft_cross_entropy import SoftCrossEntropy


class RckdLoss(Loss):
    """Terms of RCKD pretraining."""

    soft_cross_entropy: SoftCrossEntropy | None = SoftCrossEntropy()
    deep: DeepSupervision | None = DeepSupervision()

    @model_validator(mode="before")
    @classmethod
    def _dice_of_the_teacher(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(weight := data.get("dice"), int | float):
            raise ValueError(f"dice is the term against masks now; set loss.soft_dice.weight={weight:g} in its place")
        return data


class PretrainConfig(RunConfig):
    """RCKD: a student pretrained on a nuclei teacher's responses."""

    kind = "pretrain_student"

    student: Network = Network()
    teacher: Teacher
    responses: Uri | None = Field(
        None, description="folder of cached responses; null: the teacher runs beside the student"
    )
    loss: RckdLoss = RckdLoss()

    @property
    def sources(self) -> Sources:
        return Sources(self.student, teacher=self.teacher, responses=self.responses)

    @model_validator(mode="after")
    def _a_size_for_a_unet(self) -> "PretrainConfig":
        size = self.student.size_px
        if size is not None and size % STRIDE:
            raise ValueError(f"student.size_px is {size}, and a U-Net needs a multiple of {STRIDE}; choose one")
        return self
