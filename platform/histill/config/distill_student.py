"""Configuration of `histill distill`."""

from pydantic import Field, model_validator

from histill.config.base import ModelUri, Uri
from histill.config.common import Teacher
from histill.config.runs import Network, RunConfig, Sources
from histill.losses.loss import Loss
from histill.losses.terms.divergence import Divergence
from histill.losses.terms.features import Features


class DistillLoss(Loss):
    """Loss terms of resolution distillation; the first two are those of the resolution paper."""

    divergence: Divergence | None = Divergence()
    features: Features | None = Features()


class DistillConfig(RunConfig):
    """A low-resolution student that mimics a high-resolution teacher, on labeled and unlabeled tiles alike."""

    kind = "distill_student"

    student: Network = Network()
    teacher: Teacher
    responses: Uri | None = Field(
        None,
        description="folder of cached responses, with feature maps (histill cache layer=...) if terms need them; "
        "null: the teacher runs live",
    )
    loss: DistillLoss = DistillLoss()
    encoder: ModelUri | None = Field(
        None, description="initial weights: a run, model folder or models:/name@alias; null: random weights"
    )
    fraction: float = Field(1.0, gt=0, le=1, description="fraction of the training cases to use")
    fraction_seed: int = Field(0, ge=0, description="seed of their choice; a smaller fraction is a subset of a larger")
    labeled: float = Field(1.0, gt=0, le=1, description="fraction of the training cases whose labels the loss may use")
    quantization_aware: bool = Field(
        False,
        description="train with the roundings of int8 formats, so that the student loses less when it is promoted so",
    )
    allow_fractional_ratio: bool = Field(
        False, description="allow a student's resolution that does not divide the teacher's evenly"
    )

    @property
    def sources(self) -> Sources:
        return Sources(self.student, teacher=self.teacher, responses=self.responses, encoder=self.encoder)

    @model_validator(mode="after")
    def _sound(self) -> "DistillConfig":
        if self.encoder is not None and self.student.weights is not None:
            raise ValueError("encoder and student.weights both bring pretrained weights; name one of them")
        if self.labeled < 1 and "labels" not in self.loss.needs:
            raise ValueError("labeled says whose labels are used, and no term of loss uses labels; leave it out")
        if self.quantization_aware and self.compile:
            raise ValueError(
                "quantization_aware rounds weights in each step, which compile cannot trace; leave one of them out"
            )
        return self
