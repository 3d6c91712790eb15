"""Configuration of `pretrain_student.py`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from histill.config.base import Uri
from histill.config.common import Teacher
from histill.config.embeddings import EmbeddingTeacher
from histill.config.runs import STRIDE, Network, RunConfig, Sources
from histill.losses.loss import DeepSupervision, Loss
from histill.losses.terms.soft_cross_entropy import SoftCrossEntropy

TeacherName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
"""A name within a run: lower-case letters, digits and `_`."""


class RckdLoss(Loss):
    """Loss terms of RCKD pretraining."""

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
    teacher: Teacher | None = Field(
        None, description="teacher of pixels, such as nuclei (RCKD); null: learn from embeddings alone"
    )
    responses: Uri | None = Field(None, description="folder of cached responses; null: the teacher runs live")
    embeddings: dict[TeacherName, EmbeddingTeacher] = Field(
        {},
        description="teachers of embeddings, by a name of your choice; without a teacher of pixels the result is an "
        "encoder",
    )
    loss: RckdLoss = RckdLoss()

    @property
    def sources(self) -> Sources:
        return Sources(self.student, teacher=self.teacher, responses=self.responses, embeddings=self.embeddings)

    @model_validator(mode="before")
    @classmethod
    def _default_terms(cls, data: Any) -> Any:
        """Default terms are on embeddings if these have teachers, and on pixels if there is a teacher of these."""
        if not isinstance(data, Mapping) or not data.get("embeddings"):
            return data
        loss = data.get("loss", {})
        if not isinstance(loss, Mapping):
            return data
        named = any(str(key).startswith("embedding_") or key == "tokens" for key in loss)
        terms: dict[str, Any] = {} if named else {"embedding_cosine": {}}
        if data.get("teacher") is None:
            terms |= {"soft_cross_entropy": None, "deep": None}
        return {**data, "loss": {**terms, **loss}}

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> "PretrainConfig":
        if self.teacher is None and not self.embeddings:
            raise ValueError(
                "no teacher is named; set teacher (of pixels), embeddings.<name>.responses=<folder>, or both"
            )
        if self.teacher is None and self.responses is not None:
            raise ValueError(
                "responses are those of teacher, which is not set; name it, or use embeddings.<name>.responses"
            )
        return self

    @model_validator(mode="after")
    def _a_size_for_a_unet(self) -> "PretrainConfig":
        size = self.student.size_px
        if self.teacher is not None and size is not None and size % STRIDE:
            raise ValueError(f"student.size_px is {size}, and a U-Net needs a multiple of {STRIDE}; choose one")
        return self
