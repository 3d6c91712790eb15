"""Configuration of `distill_student.py`."""

from typing import Literal

from pydantic import Field, model_validator

from histill.config.base import ModelUri, Strict, Uri
from histill.config.common import Teacher
from histill.config.runs import Network, RunConfig, Sources

Resize = Literal["half_max_half_bicubic", "area", "adaptive_max"]


class Term(Strict):
    """A part of the loss."""

    weight: float = Field(1.0, gt=0, description="factor of the term; leave the term out with null, not with 0")


class Divergence(Term):
    """KL divergence of the softened answers."""

    temperature: float = Field(1.0, gt=0, description="softens teacher and student alike")


class Decoupled(Term):
    """Decoupled distillation: the target class, and the others among themselves; on its label, else the teacher's."""

    temperature: float = Field(1.0, gt=0, description="softens teacher and student alike")
    target: float = Field(1.0, ge=0, description="weight of the target class against the rest")
    others: float = Field(1.0, ge=0, description="weight of the others among themselves")


class Labels(Term):
    """Cross-entropy with the labels (or masks), where there are any."""

    smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target that is spread over all classes")


class Features(Term):
    """Distance of feature maps, the student's through a learned projection where widths differ."""

    student_layer: str | None = Field(None, description="layer of the student, by timm's name; null: its last")
    teacher_layer: str | None = Field(None, description="layer of the teacher; null: its last")
    norm: Literal["l1", "l2"] = Field("l2", description="absolute or squared differences")
    resize: Resize = Field("half_max_half_bicubic", description="of the teacher's map to the student's size")


class ManyFeatures(Term):
    """The same for a layer of the student and several of the teacher, weighted by what is learned."""

    student_layer: str | None = Field(None, description="layer of the student; null: its last")
    teacher_layers: tuple[str, ...] | None = Field(
        None, min_length=1, description="layers of the teacher; null: its last two"
    )
    norm: Literal["l1", "l2"] = Field("l2", description="absolute or squared differences")
    resize: Resize = Field("half_max_half_bicubic", description="of the teacher's map to the student's size")


class Attention(Term):
    """Distance of Grad-CAM maps of the teacher's most probable class."""

    student_layer: str | None = Field(None, description="layer of the student; null: its last")
    teacher_layer: str | None = Field(None, description="layer of the teacher; null: its last")


class Contrastive(Term):
    """InfoNCE between the pooled last maps, with a queue of the teacher's for other tiles."""

    temperature: float = Field(0.07, gt=0, description="sharpens the comparison")
    queue: int = Field(1024, ge=0, description="tiles that each worker remembers")


class Relational(Term):
    """Distances and angles between the pooled last maps of a batch's tiles."""

    distances: float = Field(1.0, ge=0, description="weight of the distances")
    angles: float = Field(2.0, ge=0, description="weight of the angles; memory grows with the cube of a worker's batch")


class DistillLoss(Strict):
    """The terms by name; null leaves one out. The first two are the resolution paper's."""

    divergence: Divergence | None = Divergence()
    features: Features | None = Features()
    labels: Labels | None = None
    decoupled: Decoupled | None = None
    many_features: ManyFeatures | None = None
    attention: Attention | None = None
    contrastive: Contrastive | None = None
    relational: Relational | None = None

    @property
    def terms(self) -> dict[str, Term]:
        """Those that are not left out."""
        return {name: term for name, term in dict(self).items() if term is not None}

    @model_validator(mode="after")
    def _something_for_the_head(self) -> "DistillLoss":
        if not (self.divergence or self.labels or self.decoupled):
            raise ValueError(
                "loss has no term for the student's answers; give it divergence, decoupled or labels beside the others"
            )
        return self


class DistillConfig(RunConfig):
    """A student at low resolution that mimics a teacher at high resolution, on labelled and unlabelled tiles alike."""

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
    labelled: float = Field(1.0, gt=0, le=1, description="part of the training cases whose labels loss.labels may see")
    resize: bool = Field(
        False, description="let the student's resolution be one that the teacher's is no whole multiple of"
    )

    @property
    def sources(self) -> Sources:
        return Sources(self.student, teacher=self.teacher, responses=self.responses, encoder=self.encoder)

    @model_validator(mode="after")
    def _sound(self) -> "DistillConfig":
        if self.encoder is not None and self.student.weights is not None:
            raise ValueError("encoder and student.weights both bring pretrained weights; name one of them")
        if self.labelled < 1 and self.loss.labels is None and self.loss.decoupled is None:
            raise ValueError("labelled says whose labels are seen, and no term of loss uses labels; leave it out")
        return self
