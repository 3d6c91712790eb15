"""Configuration of `distill_student.py`."""

from pydantic import Field, model_validator

from histill.config.base import ModelUri, Uri
from histill.config.common import Teacher
from histill.config.runs import Network, RunConfig, Sources
from histill.losses.loss import Loss
from histill.losses.terms.divergence import Divergence
from histill.losses.terms.features import Features


class DistillLoss(Loss):
    """Terms of resolution distillation; the first two are the resolution paper's."""

    divergence: Divergence | None = Divergence()
    features: Features | None = Features()


class DistillConfig(RunConfig):
    """A student at low resolution that mimics a teacher at high resolution, on labeled and unlabeled tiles alike."""

    kind = "distill_student"

    student: Network = Network()
    teacher: Teacher
    responses: Uri | None = Field(
        None,
        description="folder of cached responses, with feature maps (cache_responses.py layer=...) if terms ask; "
        "null: the teacher runs beside the student",
    )
    loss: DistillLoss = DistillLoss()
    encoder: ModelUri | None = Field(
        None, description="where the student starts: a run, model folder or models:/name@alias; null: fresh weights"
    )
    fraction: float = Field(1.0, gt=0, le=1, description="part of the training cases to use")
    fraction_seed: int = Field(0, ge=0, description="which cases; a smaller fraction is a part of a larger one")
    labeled: float = Field(1.0, gt=0, le=1, description="part of the training cases whose labels the loss may see")
    allow_fractional_ratio: bool = Field(
        False, description="let the student's resolution be one that the teacher's is no whole multiple of"
    )

    @property
    def sources(self) -> Sources:
        return Sources(self.student, teacher=self.teacher, responses=self.responses, encoder=self.encoder)

    @model_validator(mode="after")
    def _sound(self) -> "DistillConfig":
        if self.encoder is not None and self.student.weights is not None:
            raise ValueError("encoder and student.weights both bring pretrained weights; name one of them")
        if self.labeled < 1 and "labels" not in self.loss.needs:
            raise ValueError("labeled says whose labels are seen, and no term of loss uses labels; leave it out")
        return self
